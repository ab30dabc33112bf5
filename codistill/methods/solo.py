"""Plain training: each replica on its own labels. The control of every comparison."""

from __future__ import annotations

from collections.abc import Sequence

from codistill.methods.common import batches_of, one_group, one_network, surveys
from codistill.phase import Loss, Phase, Replica, Step, Update
from codistill.recipes import Recipe
from codistill.spec import JobSpec


def plan(spec: JobSpec, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """One phase, no teachers, nothing published."""

    def loss(step: Step) -> Loss:
        task = recipe.task_loss(step.show("net"), step.batch)
        return Loss(task, {"train/task_loss": task.detach()})

    return [
        Phase(
            name="train",
            steps=spec.training.steps,
            learner=lambda artifacts: one_network(recipe, artifacts),
            batches=lambda artifacts: batches_of(spec, recipe, replica),
            updates=[Update(loss, trains=("net",))],
            groups=one_group(spec.training),
            surveys=surveys(spec, recipe),
        )
    ]
