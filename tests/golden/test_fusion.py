"""Fusion learning and cheap convolutions: losses on chosen logits, what fusions are made of, and whom they train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from codistill.methods import plan
from codistill.phase import Artifacts, Phase, Replica
from codistill.recipes import open_recipe
from codistill.spec_errors import SpecError
from codistill.surgery.fusion import Fusion, Pooled
from tests.golden.said import S, Says, T, step_of
from tests.support import small_spec

FUSED = [0.0, 1.0, 0.5]
LABEL = torch.tensor([1.0, 0, 0], dtype=torch.float64)


def phase_of(kind: str, **method: Any) -> Phase:
    spec = small_spec(method={"kind": kind, "nets": 2, **method}, replicas={"count": 1})
    (phase,) = plan(spec, open_recipe(spec), Replica(0, 1, 0))
    return phase


def said() -> Says:
    return Says(logits=S, **{"branch0/logits": S, "branch1/logits": T, "fused": FUSED})


def ce(logits: Tensor) -> float:
    return F.cross_entropy(logits[None], torch.tensor([0])).item()


def kl(teacher: Tensor, student: Tensor, temperature: float) -> float:
    target, log_student = (teacher / temperature).softmax(-1), (student / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(log_student, target, reduction="sum").item()


@pytest.mark.parametrize(
    ("kind", "teaches_the_fused"), [("feature_fusion_learning", True), ("cheap_convolutions", False)]
)
def test_the_losses_are_the_papers_and_no_target_has_a_gradient(kind: str, teaches_the_fused: bool) -> None:
    (update,) = phase_of(kind, temperature=3.0, weight=0.5).updates
    step = step_of(net=said())
    loss = update.loss(step)
    first, second, fused = (torch.tensor(z, dtype=torch.float64) for z in (S, T, FUSED))
    mean = (first + second) / 2
    soft = kl(fused, first, 3) + kl(fused, second, 3) + teaches_the_fused * kl(mean, fused, 3)
    assert loss.value.item() == pytest.approx(ce(first) + ce(second) + ce(fused) + 0.5 * soft, abs=1e-7)
    loss.value.backward()
    taps = step.learner["net"].taps

    def soft_gradient(student: Tensor, teacher: Tensor) -> Tensor:
        return 0.5 * 3 * ((student / 3).softmax(-1) - (teacher / 3).softmax(-1))

    of_second = second.softmax(-1) - LABEL + soft_gradient(second, fused)
    of_fused = fused.softmax(-1) - LABEL + teaches_the_fused * soft_gradient(fused, mean)
    assert_close(taps["branch1/logits"].grad[0], of_second, atol=1e-7, rtol=0)
    assert_close(taps["fused"].grad[0], of_fused, atol=1e-7, rtol=0)


def test_what_fusions_are_made_of_is_counted_by_hand() -> None:
    def size(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    c, classes = 8, 10
    assert size(Fusion((c, 5, 5), 2, classes)) == 9 * 2 * c + 2 * c * c + 2 * 2 * c + 2 * c + c * classes + classes
    assert size(Pooled((c, 5, 5), 3, classes)) == 2 * 3 * c + 3 * c * classes + classes
    assert size(Fusion((7, c), 2, classes)) == 2 * c * c + 2 * c + c * classes + classes


@pytest.mark.parametrize("module", [Fusion, Pooled])
@pytest.mark.parametrize("shape", [(4, 6, 6), (6, 4), (4,)], ids=["maps", "states", "vectors"])
def test_fusions_look_at_every_network_and_states_do_not_look_ahead(module: type[Any], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    fusion = module(shape, 2, 3).eval()
    maps = [torch.randn(2, *shape, requires_grad=True) for _ in range(2)]
    logits = fusion({f"branch{k}/maps": one for k, one in enumerate(maps)})["fused"]
    assert logits.shape == ((2, 6, 3) if len(shape) == 2 else (2, 3))
    if len(shape) == 2:
        logits = logits[:, 2]
    logits.square().sum().backward()
    for one in maps:
        assert one.grad is not None
        reached = one.grad.abs().amax((0, -1)) > 0 if len(shape) == 2 else one.grad.abs().sum() > 0
        assert reached.tolist() == ([place == 2 for place in range(6)] if len(shape) == 2 else True)


def test_pooled_by_hand() -> None:
    """In evaluation, with fresh statistics: the mean over places of what is positive, then the linear layer."""
    pooled = Pooled((1, 1, 2), 2, 2).eval()
    with torch.no_grad():
        pooled.body[-1].weight.copy_(torch.eye(2))
        pooled.body[-1].bias.zero_()
    first, second = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[-4.0, 6.0]]]])
    fused = pooled({"branch0/maps": first, "branch1/maps": second})["fused"]
    assert_close(fused, torch.tensor([[2.0, 3.0]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["feature_fusion_learning", "cheap_convolutions"])
def test_the_fused_classifier_trains_the_networks_through_their_maps(kind: str) -> None:
    phase = phase_of(kind)
    torch.manual_seed(0)
    net = phase.learner(Artifacts())["net"].train()
    F.cross_entropy(net(torch.rand(4, 1, 8, 8))["fused"], torch.zeros(4, dtype=torch.int64)).backward()
    for number in range(2):
        named = dict(net.branches.nets[number].named_parameters())
        assert named["body.4.weight"].grad.any()
        assert named["head.weight"].grad is None


def test_one_sample_cannot_be_normalised() -> None:
    with pytest.raises(SpecError, match=r"needs at least 2: training\.batch_size \(4\) leaves 1"):
        small_spec(method={"kind": "one"}, training={"batch_size": 4, "accumulate": 4}, replicas={"count": 1})
