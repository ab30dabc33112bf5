"""OKDDip: attention by hand, whom each level reaches, and the loss on chosen logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from codistill.divergence import diversity
from codistill.methods import plan
from codistill.methods.okddip import each_attends
from codistill.phase import Artifacts, Phase, Replica, Step
from codistill.recipes import open_recipe
from codistill.surgery.attention import Attention
from tests.golden.said import S, Says, T, step_of
from tests.support import small_spec

THIRD = [0.0, 3.0, 1.0]
ALPHA = [[0.25, 0.75], [0.5, 0.5]]


def phase_of(**method: Any) -> Phase:
    spec = small_spec(method={"kind": "okddip", "nets": 3, **method}, replicas={"count": 1})
    (phase,) = plan(spec, open_recipe(spec), Replica(0, 1, 0))
    return phase


def by_hand() -> Attention:
    attention = Attention(2)
    attention.listens.weight = nn.Parameter(torch.diag(torch.tensor([1.0, 2.0])))
    attention.speaks.weight = nn.Parameter(torch.eye(2))
    return attention


def test_who_listens_to_whom_by_hand() -> None:
    features = [torch.tensor([h]) for h in ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0])]
    expected = [[0.4223188, 0.1553624, 0.4223188], [0.0633789, 0.4683105, 0.4683105], [0.0900306, 0.2447285, 0.6652410]]
    assert_close(by_hand().weights(features), torch.tensor([expected]), atol=1e-6, rtol=0)
    leader = {"branch0/features": torch.full((1, 2), 9.0)}
    peers = {f"branch{k}/features": one for k, one in enumerate(features, 1)}
    assert_close(by_hand()({**leader, **peers})["attention"], torch.tensor([expected]), atol=1e-6, rtol=0)


def test_the_loss_is_the_papers() -> None:
    (update,) = phase_of(temperature=3.0, weight=0.5).updates
    taps: dict[str, Any] = {
        "logits": S,
        "branch0/logits": S,
        "branch1/logits": T,
        "branch2/logits": THIRD,
        "attention": ALPHA,
    }
    step = step_of(net=Says(**taps))
    loss = update.loss(step)
    leader, *peers = (torch.tensor(z, dtype=torch.float64) for z in (S, T, THIRD))
    soft = [(z / 3).softmax(-1) for z in peers]

    def kl(target: torch.Tensor, z: torch.Tensor) -> float:
        return float(9 * (target * (target.log() - (z / 3).log_softmax(-1))).sum())

    first = kl(0.25 * soft[0] + 0.75 * soft[1], peers[0]) + kl(0.5 * soft[0] + 0.5 * soft[1], peers[1])
    second = kl(0.5 * soft[0] + 0.5 * soft[1], leader)
    labels = sum(-float(z.log_softmax(-1)[0]) for z in (leader, *peers))
    assert loss.value.item() == pytest.approx(labels + 0.5 * (first + second), abs=1e-7)
    assert loss.stats["train/distill_loss"].item() == pytest.approx(second, abs=1e-7)
    loss.value.backward()
    # Level 1 gives the leader no gradient, nor level 2 any peer: T (softmax(z / T) - target) of its own target alone.
    said = step.learner["net"].taps
    of_labels = leader.softmax(-1) - torch.tensor([1.0, 0, 0])
    pulled = 0.5 * 3 * ((leader / 3).softmax(-1) - (soft[0] + soft[1]) / 2)
    assert_close(said["branch0/logits"].grad[0], of_labels + pulled, atol=1e-7, rtol=0)
    of_labels = peers[0].softmax(-1) - torch.tensor([1.0, 0, 0])
    pulled = 0.5 * 3 * (soft[0] - (0.25 * soft[0] + 0.75 * soft[1]))
    assert_close(said["branch1/logits"].grad[0], of_labels + pulled, atol=1e-7, rtol=0)
    assert said["attention"].grad.any()


def test_equal_attention_is_the_plain_mean_and_one_peer_has_nothing_to_learn() -> None:
    torch.manual_seed(0)
    peers = [torch.randn(4, 5) for _ in range(3)]
    terms = each_attends(peers, torch.full((4, 3, 3), 1 / 3), temperature=2.0)
    mean = torch.stack([(z / 2).softmax(-1) for z in peers]).mean(0)
    for term, z in zip(terms, peers, strict=True):
        assert_close(term, 4 * F.kl_div((z / 2).log_softmax(-1), mean, reduction="batchmean"))
    attention = Attention(16)
    (alone,) = each_attends(peers[:1], attention.weights([torch.randn(4, 16)]), temperature=2.0)
    assert alone.item() == pytest.approx(0, abs=1e-6)


def test_attention_learns_and_so_far_apart_that_one_peer_is_heard_no_more_it_stays_finite() -> None:
    phase = phase_of()
    torch.manual_seed(0)
    learner = phase.learner(Artifacts()).train()
    step = Step(0, phase.batches(Artifacts())(0), learner, dict(learner.items()), {}, {})
    phase.updates[0].loss(step).value.backward()
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() or "bias" in name, name
    features = [torch.tensor([[100.0, 0.0]], requires_grad=True), torch.tensor([[0.0, 100.0]], requires_grad=True)]
    torch.stack(
        each_attends([torch.randn(1, 3), torch.randn(1, 3)], by_hand().weights(features), temperature=1.0)
    ).sum().backward()
    assert all(torch.isfinite(one.grad).all() for one in features if one.grad is not None)


def test_diversity_is_the_mean_distance_of_two() -> None:
    apart = diversity([torch.tensor([[3.0, 0, 0]]), torch.tensor([[0, 3.0, 0]]), torch.tensor([[3.0, 0, 0]])])
    assert apart.item() == pytest.approx(2 / 3 * 2**0.5 * (0.9094430 - 0.0452785), abs=1e-6)
    assert diversity([torch.zeros(1, 3)]).item() == 0
