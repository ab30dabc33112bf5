"""Knowledge distillation: Hinton, Vinyals, Dean 2015, arXiv 1503.02531.

A trained teacher, which does not change, gives logits t; the student, with logits s, fits them and the labels:

    L = (1 - alpha) * CE(y, p) + alpha * T^2 * KL(softmax(t / T), softmax(s / T))

The teacher is trained in a first phase of the job, or comes from the export of another job or of a registered model. It
sees each batch as the student does. With rising T the second term tends to a regression of logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from torch import nn

from codistill.companion import Opening
from codistill.divergence import pull
from codistill.exported import exported_model, mismatch
from codistill.methods.common import labels_alone, one_phase
from codistill.phase import Loss, Phase, Replica, Step
from codistill.recipes import Recipe, recipe_of
from codistill.spec import JobSpec, KnowledgeDistillation, OfJob, RegisteredModel, TrainedFirst
from codistill.teachers import Frozen


def plan(spec: JobSpec, method: KnowledgeDistillation, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """The student's phase `train`, after one named `teacher` where the teacher is trained first.

    Raises `ValueError` when the first phase would train what the student cannot learn from.
    """

    def loss(step: Step) -> Loss:
        student = step.show("net")
        (teacher,) = step.targets["teacher"]
        task = recipe.task_loss(student, step.batch)
        distill = pull("kl", [teacher["logits"]], student["logits"], temperature=method.temperature).loss
        stats = {"train/task_loss": task.detach(), "train/distill_loss": distill.detach()}
        return Loss((1 - method.alpha) * task + method.alpha * distill, stats)

    match method.teacher:
        case TrainedFirst() as first:
            own = recipe if first.recipe is None else recipe_of(first.recipe)
            if (problem := mismatch(own, recipe)) is not None:
                raise ValueError(f"method.teacher.recipe: the teacher {problem}")
            before = one_phase(spec, own, replica, labels_alone(own), name="teacher", steps=first.steps)

            def of_phase(opening: Opening) -> nn.Module:
                return opening.finished["teacher"]["net"]

            return [*before, *one_phase(spec, recipe, replica, loss, teachers=[Frozen(of_phase)])]
        case OfJob() | RegisteredModel() as source:

            def of_export(opening: Opening) -> nn.Module:
                return exported_model(source, opening.storage, recipe)

            return one_phase(spec, recipe, replica, loss, teachers=[Frozen(of_export)])
        case _:
            assert_never(method.teacher)
