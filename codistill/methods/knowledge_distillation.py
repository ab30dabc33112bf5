"""Knowledge distillation: Hinton, Vinyals, Dean 2015, arXiv 1503.02531.

Trained teachers, which do not change, give logits t_1 .. t_m; the student, with logits s, fits them and the labels:

    L = (1 - alpha) * CE(y, p) + alpha * T^2 * KL( 1/m * sum_j softmax(t_j / T), softmax(s / T) )

With rising T the second term tends to a regression of logits, each less its mean over the C classes, which is
`method.divergence` 'logit_regression':

    1 / (2 C) * |s - 1/m * sum_j t_j|^2

There is one teacher, trained in a first phase of the job or out of the export of another job or of a registered model;
or an ensemble of several exports. Teachers see each batch as the student does; where a sample always looks alike, what
they say of it can be worked out once.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from codistill.cached_teachers import Cached
from codistill.data.loader import training_batches
from codistill.data.split import Split
from codistill.divergence import pull
from codistill.methods.common import one_phase
from codistill.methods.offline import models_of, phases_before
from codistill.phase import Loss, Phase, Replica, Step
from codistill.recipes import Recipe
from codistill.spec import JobSpec, KnowledgeDistillation
from codistill.teachers import Frozen


def plan(spec: JobSpec, method: KnowledgeDistillation, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """The student's phase `train`, after one named `teacher` where the teacher is trained first.

    Raises `ValueError` when the first phase would train what the student cannot learn from.
    """
    temperature = 1.0 if method.divergence == "logit_regression" else method.temperature

    def loss(step: Step) -> Loss:
        student = step.show("net")
        said = [teacher["logits"] for teacher in step.targets["teacher"]]
        task = recipe.task_loss(student, step.batch)
        distill = pull(method.divergence, said, student["logits"], temperature=temperature).loss
        stats = {"train/task_loss": task.detach(), "train/distill_loss": distill.detach()}
        return Loss((1 - method.alpha) * task + method.alpha * distill, stats)

    def samples() -> tuple[Split, Tensor]:
        batches = training_batches(recipe.split("train"), spec.data, replica, spec.training.batch_size)
        return batches.split, batches.ids_until(spec.training.steps)

    frozen = Frozen(models_of(method.teacher, recipe))
    source = Cached(frozen, samples) if method.cache_predictions else frozen
    before = phases_before(spec, method.teacher, recipe, replica)
    return [*before, *one_phase(spec, recipe, replica, loss, teachers=[source])]
