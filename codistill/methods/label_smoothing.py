"""Label smoothing: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, CVPR 2016, arXiv 1512.00567, section 7.

After a burn-in on the labels alone, each replica adds the cross-entropy to smoothed labels, in the place that the
teachers' distribution has in co-distillation:

    L = CE(y, p) + weight * CE(q, p),    q = 1 - epsilon on the label, epsilon / (K - 1) on each of the K - 1 others

`method.weight_schedule` lets the weight change from the burn-in on.

The control that tells whether a gain of co-distillation comes from what the teachers know, or from targets that are
softer than labels. Each replica is on its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from codistill import losses
from codistill.methods.common import one_phase
from codistill.phase import Loss, Phase, Replica, Step
from codistill.recipes import Recipe
from codistill.schedules import open_schedule
from codistill.spec import JobSpec, LabelSmoothing


def plan(spec: JobSpec, method: LabelSmoothing, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """One phase, no teachers, nothing published."""

    factor = open_schedule(method.weight_schedule, spec.training.steps - method.burn_in_steps)

    def loss(step: Step) -> Loss:
        student = step.show("net")
        task = recipe.task_loss(student, step.batch)
        if step.index < method.burn_in_steps:
            return Loss(task, {"train/task_loss": task.detach()})
        smoothed = losses.smoothed_cross_entropy(student["logits"], step.batch.y, epsilon=method.epsilon)
        weight = method.weight * factor(step.index - method.burn_in_steps)
        stats = {
            "train/task_loss": task.detach(),
            "train/smoothed_loss": smoothed.detach(),
            "smoothing/epsilon": torch.tensor(method.epsilon),
            "smoothing/weight": torch.tensor(weight),
        }
        return Loss(task + weight * smoothed, stats)

    return one_phase(spec, recipe, replica, loss)
