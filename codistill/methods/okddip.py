"""Online knowledge distillation with diverse peers (OKDDip): Chen, Mei, Wang, Feng, Chen, AAAI 2020, arXiv 1912.00350.

Networks 0..m-1 see the same batch: a leader, 0, and auxiliary peers. Each peer a is pulled towards a target of its
own, which attention over all peers, itself among them, mixes from their predictions; the leader towards their mean.
With h what a network's classifier is shown, and q^T a prediction at temperature T:

    alpha_ab = softmax_b((W_L h_a) . (W_E h_b))          t_a = sum_b alpha_ab q_b^T
    L = sum_k CE(y, q_k) + weight(t) * T^2 * [ sum_a KL(t_a || q_a^T) + KL(mean_a q_a^T || q_0^T) ]

The peers' predictions are detached in every target and alpha is not, else W_L and W_E would never learn. The authors'
code detaches nothing and mixes logits; this is the paper's mixture of probabilities. Networks share all stages but the
last (the paper's branch form), or with `split` = 0 none (its network form). `label_weight` is the factor of the peers'
losses on the labels; `train/diversity` the mean distance between predictions of two peers. The leader is exported.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from codistill.divergence import attended, diversity, pull
from codistill.methods.common import one_phase
from codistill.phase import Artifacts, Learner, Loss, Phase, Replica, Step
from codistill.recipes import Recipe
from codistill.schedules import open_schedule
from codistill.spec import JobSpec, Okddip
from codistill.surgery.attention import Attention
from codistill.surgery.branches import Joined, first_net, of_branch, of_each, side_by_side


def plan(spec: JobSpec, method: Okddip, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """One phase; raises `ValueError` for a model without a stage after those in common."""

    nets = side_by_side(
        recipe.build_model, recipe.example(2), method=method.kind, branches=method.nets, split=method.split
    )
    factor = open_schedule(method.weight_schedule, spec.training.steps)

    def learner(artifacts: Artifacts) -> Learner:
        grown = nets.grow()  # first, so that the exported one begins as it would by itself
        return Learner({"net": Joined(grown, Attention(nets.taps["features"][-1]))})

    def loss(step: Step) -> Loss:
        said = step.show("net")
        tasks = [recipe.task_loss(of_branch(said, k), step.batch) for k in range(method.nets)]
        leader, *peers = of_each(said, "logits")
        of_leader = pull("kl", peers, leader, temperature=method.temperature).loss
        of_peers = torch.stack(each_attends(peers, said["attention"], temperature=method.temperature)).sum()
        weight = method.weight * factor(step.index)
        stats = {
            "train/task_loss": tasks[0].detach(),
            "train/distill_loss": of_leader.detach(),
            "train/peers_distill_loss": of_peers.detach(),
            "train/diversity": diversity(peers),
            "distill/weight": torch.tensor(weight),
        }
        labels = method.label_weight * torch.stack(tasks[1:]).sum()
        return Loss(tasks[0] + labels + weight * (of_peers + of_leader), stats)

    evaluated = {f"net{k}/" if k else "": f"branch{k}/logits" for k in range(method.nets)}
    return one_phase(spec, recipe, replica, loss, learner=learner, taps=evaluated, export=first_net)


def each_attends(peers: Sequence[Tensor], attention: Tensor, *, temperature: float) -> list[Tensor]:
    """The term of each of m peers, from their logits [..., classes] and `attention` [..., m, m]: scalars."""
    return [
        attended(peers, own, weights, temperature=temperature).loss
        for own, weights in zip(peers, attention.unbind(-2), strict=True)
    ]
