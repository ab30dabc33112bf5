"""Plain training: each replica on its own labels. The control of every comparison."""

from __future__ import annotations

from collections.abc import Sequence

from codistill.methods.common import one_phase
from codistill.phase import Loss, Phase, Replica, Step
from codistill.recipes import Recipe
from codistill.spec import JobSpec


def plan(spec: JobSpec, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """One phase, no teachers, nothing published."""

    def loss(step: Step) -> Loss:
        task = recipe.task_loss(step.show("net"), step.batch)
        return Loss(task, {"train/task_loss": task.detach()})

    return one_phase(spec, recipe, replica, loss)
