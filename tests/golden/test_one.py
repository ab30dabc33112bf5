"""ONE: its gate by hand, its loss on chosen logits, and who learns from what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from codistill.methods import plan
from codistill.phase import Artifacts, Phase, Replica, Step
from codistill.recipes import open_recipe
from codistill.surgery.gate import Gate
from tests.golden.said import S, Says, T, step_of
from tests.support import small_spec

MIXED = [1.5, 0.25, -1.0]


def phase_of(**method: Any) -> Phase:
    spec = small_spec(method={"kind": "one", "branches": 2, **method}, replicas={"count": 1})
    (phase,) = plan(spec, open_recipe(spec), Replica(0, 1, 0))
    return phase


def said() -> Says:
    return Says(logits=S, **{"branch0/logits": S, "branch1/logits": T, "ensemble": MIXED})


def test_the_loss_is_the_papers() -> None:
    (update,) = phase_of(temperature=3.0, weight=0.5).updates
    loss = update.loss(step_of(net=said()))
    first, second, mixed = (torch.tensor([z], dtype=torch.float64) for z in (S, T, MIXED))
    label = torch.tensor([0])
    labels = [F.cross_entropy(z, label) for z in (first, second, mixed)]
    soft = [
        9 * F.kl_div((z / 3).log_softmax(-1), (mixed / 3).softmax(-1), reduction="batchmean") for z in (first, second)
    ]
    assert loss.value.item() == pytest.approx(
        (torch.stack(labels).sum() + 0.5 * torch.stack(soft).sum()).item(), abs=1e-9
    )


def test_the_ramp_of_the_papers_code() -> None:
    (update,) = phase_of(weight_schedule={"kind": "ramp_up", "ramp_steps": 80}).updates
    step = step_of(net=said())
    weights = [update.loss(replace(step, index=at)).stats["distill/weight"].item() for at in (0, 20, 40, 60, 80, 99)]
    assert weights == pytest.approx([0.0067379, 0.0600547, 0.2865048, 0.7316156, 1, 1], abs=1e-7)


def test_the_gate_by_hand() -> None:
    gate = Gate((1,), 2).train()
    with torch.no_grad():
        gate.linear.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        gate.linear.bias.zero_()
    # Scores (1, -1) and (3, -3) are normalised to (-1, 1) and (1, -1); ReLU leaves (0, 1) and (1, 0).
    expected = torch.tensor([[0.2689414, 0.7310586], [0.7310586, 0.2689414]])
    assert_close(gate.weights(torch.tensor([[1.0], [3.0]])), expected, atol=1e-5, rtol=0)


def test_a_gate_that_passes_nothing_trusts_all_branches_alike_and_a_sure_one_is_its_branch() -> None:
    gate = Gate((4, 3, 3), 3).eval()
    nn.init.constant_(gate.norm.bias, -100.0)
    assert_close(gate.weights(torch.rand(2, 4, 3, 3)), torch.full((2, 3), 1 / 3))
    with torch.no_grad():
        gate.norm.bias.copy_(torch.tensor([-100.0, 1000.0, -100.0]))
    branches = {f"branch{k}/logits": torch.randn(2, 10) for k in range(3)}
    mixed = gate({"trunk": torch.rand(2, 4, 3, 3), **branches})
    assert_close(mixed["ensemble"], branches["branch1/logits"])
    only = Gate((4, 3, 3), 1)
    assert_close(only({"trunk": torch.rand(2, 4, 3, 3), "branch0/logits": (z := torch.randn(2, 10))})["ensemble"], z)


def test_states_are_weighted_at_each_place_by_what_stands_there() -> None:
    gate, states = Gate((5, 4), 2).eval(), torch.rand(3, 5, 4)
    nn.init.constant_(gate.norm.bias, 1.0)
    changed = states.clone()
    changed[:, 3] += 1
    differs = (gate.weights(states) != gate.weights(changed)).any(-1)
    assert differs.tolist() == [[False, False, False, True, False]] * 3


@pytest.mark.parametrize(("of_labels", "learns"), [(1.0, True), (0.0, False)])
def test_the_gate_learns_from_the_labels_alone(of_labels: float, learns: bool) -> None:
    phase = phase_of(label_weight=of_labels, weight=1.0 - of_labels)
    torch.manual_seed(0)
    learner = phase.learner(Artifacts()).train()
    step = Step(0, phase.batches(Artifacts())(0), learner, dict(learner.items()), {}, {})
    phase.updates[0].loss(step).value.backward()
    gradients = {name: p.grad for name, p in learner.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())

    def moved(of: str) -> bool:
        return any(bool(g.any()) for name, g in gradients.items() if of in name and isinstance(g, Tensor))

    assert moved("joint") == learns
    assert moved("nets.1."), "a branch learns from both"
