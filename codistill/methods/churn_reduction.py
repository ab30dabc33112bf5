"""Churn reduction via distillation: Jiang, Narasimhan, Bahri, Cotter, Rostamizadeh, ICLR 2022, arXiv 2106.02654.

A model is to take the place of one in use, the incumbent. Where the two disagree users see another prediction, for the
better or not: that is churn. Learning under a bound on it is learning from a target mixed of label and incumbent:

    L = (1 - alpha) * CE(y, p) + alpha * CE(q, p)

q being the incumbent's distribution, p the model's own, both at temperature 1. `alpha` takes the place of the bound:
choose the largest that costs no quality. `eval/churn` is the share of validation samples on which the likeliest class
of p is not that of q, `eval/soft_churn` the mean of |p - q|_1 / 2.

The incumbent comes from the export of another job or of a registered model; for a trial it is trained in a first phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from codistill.churn import churn_survey
from codistill.data.split import in_order
from codistill.divergence import pull
from codistill.methods.common import one_phase
from codistill.methods.offline import Kept, models_of, phases_before
from codistill.phase import Loss, Phase, Replica, Step
from codistill.recipes import Recipe
from codistill.spec import ChurnReduction, JobSpec
from codistill.teachers import Frozen


def plan(spec: JobSpec, method: ChurnReduction, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """The phase `train`, after one named `teacher` where the incumbent is trained first.

    Raises `ValueError` when that phase would train what the model cannot learn from.
    """

    def loss(step: Step) -> Loss:
        said = step.show("net")
        (before,) = step.targets["teacher"]
        task = recipe.task_loss(said, step.batch)
        stay = pull("cross_entropy", [before["logits"]], said["logits"]).loss
        stats = {"train/task_loss": task.detach(), "train/distill_loss": stay.detach()}
        return Loss((1 - method.alpha) * task + method.alpha * stay, stats)

    (model,) = models_of(method.teacher, recipe)
    incumbent = Kept(model)
    churn = churn_survey(
        lambda: in_order(recipe.split("validation")),
        lambda: incumbent.model,
        every_steps=spec.training.evaluate_interval_steps,
    )
    (train,) = one_phase(spec, recipe, replica, loss, teachers=[Frozen([incumbent.open])])
    before = phases_before(spec, method.teacher, recipe, replica)
    return [*before, replace(train, surveys=[*train.surveys, churn])]
