"""Feature fusion for online mutual knowledge distillation (FFL): Kim, Hyun, Chung, Kwak, ICPR 2020, arXiv 1904.09058.

Networks 1..m see the same batch, and a fusion module classifies from their last feature maps F_i side by side. The mean
of the networks' logits teaches the fused classifier, and that teaches each network:

    z_f = fusion(F_1, ..., F_m)          z_ens = 1/m sum_i z_i
    L = sum_i CE(y, p_i) + CE(y, p_f) + weight(t) * T^2 * [ sum_i KL(p_f^T || p_i^T) + KL(p_ens^T || p_f^T) ]

Targets are detached and feature maps are not: the fused classifier trains the networks through them. Networks share
all stages but the last, or with `split` = 0 none. `label_weight` is the factor of every loss on labels but that of the
first network, which is what is exported. The authors' code decays the weights of the fusion less; here all alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from codistill import combine
from codistill.divergence import pull
from codistill.methods.common import one_phase
from codistill.phase import Artifacts, Learner, Loss, Phase, Replica, Step
from codistill.recipes import Recipe
from codistill.schedules import open_schedule
from codistill.spec import FeatureFusionLearning, JobSpec
from codistill.surgery.branches import Joined, first_net, of_branch, of_each, side_by_side
from codistill.surgery.fusion import Fusion
from codistill.surgery.stages import last_stage


def plan(spec: JobSpec, method: FeatureFusionLearning, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """One phase; raises `ValueError` for a model without a stage after those in common."""

    nets = side_by_side(
        recipe.build_model, recipe.example(2), method=method.kind, branches=method.nets, split=method.split
    )
    factor = open_schedule(method.weight_schedule, spec.training.steps)

    def learner(artifacts: Artifacts) -> Learner:
        grown = nets.grow()  # first, so that the exported one begins as it would by itself
        return Learner({"net": Joined(grown, Fusion(nets.taps[last_stage(nets.taps)], method.nets, recipe.classes))})

    def loss(step: Step) -> Loss:
        said = step.show("net")
        each, fused = of_each(said, "logits"), said["fused"]
        tasks = [recipe.task_loss(of_branch(said, k), step.batch) for k in range(method.nets)]
        of_fused = recipe.task_loss({"logits": fused}, step.batch)
        from_fused = [pull("kl", [fused], logits, temperature=method.temperature).loss for logits in each]
        from_mean = pull("kl", [combine.mean_logits(each)], fused, temperature=method.temperature).loss
        labels, teachers = torch.stack([*tasks[1:], of_fused]).sum(), torch.stack([*from_fused, from_mean]).sum()
        weight = method.weight * factor(step.index)
        stats = {
            "train/task_loss": tasks[0].detach(),
            "train/fused_task_loss": of_fused.detach(),
            "train/distill_loss": from_fused[0].detach(),
            "train/fused_distill_loss": from_mean.detach(),
            "distill/weight": torch.tensor(weight),
        }
        return Loss(tasks[0] + method.label_weight * labels + weight * teachers, stats)

    others = {f"net{k}/": f"branch{k}/logits" for k in range(1, method.nets)}
    evaluated = {"": "logits", **others, "fused/": "fused"}
    return one_phase(spec, recipe, replica, loss, learner=learner, taps=evaluated, export=first_net)
