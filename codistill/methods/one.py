"""Knowledge distillation by on-the-fly native ensemble (ONE): Lan, Zhu, Gong, NeurIPS 2018, arXiv 1806.04606.

Branches 1..m share the first stages of a network. A gate looks at what those give and mixes the branches' logits, for
each sample, into a stronger teacher, which teaches every branch in the same training run:

    g = softmax(ReLU(BN(FC(pool(trunk)))))          z_e = sum_i g_i z_i
    L = sum_i CE(y, p_i) + CE(y, p_e) + weight(t) * T^2 * sum_i KL(p_e^T || p_i^T)

The teacher is detached in the divergence and not in CE(y, p_e): from that alone the gate learns, and the branches get
gradient through it as well. Where the gate's ReLU passes none of the branches, their weights are equal and it does not
learn. The paper's code raises the weight along exp(-5 (1 - t/R)^2) over the first 80 of 300 epochs (`weight_schedule`
of kind `ramp_up`). `label_weight` is the factor of every loss on labels but that of the first branch, which is what is
exported, with the stages in common; the loss, and with it the gradient of those, grows with the number of branches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from codistill.divergence import pull
from codistill.methods.common import one_phase
from codistill.phase import Artifacts, Learner, Loss, Phase, Replica, Step
from codistill.recipes import Recipe
from codistill.schedules import open_schedule
from codistill.spec import JobSpec, One
from codistill.surgery.branches import Joined, first_net, of_branch, side_by_side
from codistill.surgery.gate import Gate


def plan(spec: JobSpec, method: One, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """One phase; raises `ValueError` for a model without a stage after those in common."""

    nets = side_by_side(
        recipe.build_model, recipe.example(2), method=method.kind, branches=method.branches, split=method.split
    )
    factor = open_schedule(method.weight_schedule, spec.training.steps)
    branches = range(method.branches)

    def learner(artifacts: Artifacts) -> Learner:
        grown = nets.grow()  # first, so that the exported one begins as it would by itself
        return Learner({"net": Joined(grown, Gate(nets.taps[f"stage{nets.shared - 1}"], method.branches))})

    def loss(step: Step) -> Loss:
        said = step.show("net")
        each = [of_branch(said, k) for k in branches]
        tasks = [recipe.task_loss(one, step.batch) for one in each]
        of_ensemble = recipe.task_loss({"logits": said["ensemble"]}, step.batch)
        distill = [pull("kl", [said["ensemble"]], one["logits"], temperature=method.temperature).loss for one in each]
        labels, teacher = torch.stack([*tasks[1:], of_ensemble]).sum(), torch.stack(distill).sum()
        weight = method.weight * factor(step.index)
        stats = {
            "train/task_loss": tasks[0].detach(),
            "train/ensemble_task_loss": of_ensemble.detach(),
            "train/distill_loss": distill[0].detach(),
            "distill/weight": torch.tensor(weight),
        }
        return Loss(tasks[0] + method.label_weight * labels + weight * teacher, stats)

    others = {f"branch{k}/": f"branch{k}/logits" for k in branches[1:]}
    evaluated = {"": "logits", **others, "ensemble/": "ensemble"}
    return one_phase(spec, recipe, replica, loss, learner=learner, taps=evaluated, export=first_net)
