"""Deep mutual learning on chosen logits, and its sequential form against plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from codistill.data.loader import training_batches
from codistill.methods import plan
from codistill.methods.deep_mutual_learning import against
from codistill.phase import Phase, Replica
from codistill.randomness import seed_everything
from codistill.recipes import open_recipe
from tests.golden.said import S, Says, T, step_of
from tests.support import final_weights, new_run, run_in_turns, small_spec

CE_S, CE_T = 0.4076060, 0.2413113
T_TO_S, S_TO_T = 0.0395369, 0.0461001


def phase_of(**method: Any) -> Phase:
    spec = small_spec(method={"kind": "deep_mutual_learning", **method}, replicas={"count": 1})
    (phase,) = plan(spec, open_recipe(spec), Replica(0, 1, 0))
    return phase


def test_two_networks_that_say_s_and_t() -> None:
    step = step_of(net0=Says(logits=S), net1=Says(logits=T))
    (update,) = phase_of().updates
    loss = update.loss(step)
    assert loss.value.item() == pytest.approx(CE_S + T_TO_S + CE_T + S_TO_T, abs=1e-6)
    assert loss.stats["train/distill_loss"].item() == pytest.approx(T_TO_S, abs=1e-6)
    loss.value.backward()
    # That of the labels and that of the divergence, each in its own network alone.
    of_labels = torch.tensor(S, dtype=torch.float64).softmax(-1) - torch.tensor([1.0, 0, 0])
    expected = of_labels + torch.tensor([-0.1203561, 0.0694381, 0.0509180])
    assert_close(step.learner["net0"].taps["logits"].grad, expected[None], atol=1e-6, rtol=0)


def test_in_turn_a_network_learns_from_what_the_others_have_become() -> None:
    first, second = phase_of(order="sequential").updates
    assert (first.trains, second.trains) == (("net0",), ("net1",))
    parts = {"net0": Says(logits=S), "net1": Says(logits=T)}
    before = second.loss(step_of(**parts)).value.item()
    loss = first.loss(step_of(**parts)).value
    assert loss.item() == pytest.approx(CE_S + T_TO_S, abs=1e-6)
    loss.backward()
    assert parts["net1"].taps["logits"].grad is None
    assert before == pytest.approx(CE_T + S_TO_T, abs=1e-6)
    with torch.no_grad():
        parts["net0"].taps["logits"] += torch.tensor(T) - torch.tensor(S)
    assert second.loss(step_of(**parts)).value.item() == pytest.approx(CE_T, abs=1e-6)


def test_three_networks_pairwise_and_against_the_mean_differ_by_how_much_the_others_do() -> None:
    others = [torch.tensor([[3.0, 0, 0]]), torch.tensor([[0, 3.0, 0]])]
    gradients = []
    for ensemble, value in ((False, 0.7320183), (True, 0.2524787)):
        student = torch.zeros(1, 3, requires_grad=True)
        loss = against(others, student, ensemble=ensemble, temperature=1.0)
        assert loss.item() == pytest.approx(value, abs=1e-6)
        loss.backward()
        gradients.append(student.grad)
    assert_close(gradients[0], gradients[1])


def test_a_sequential_run_is_the_papers_algorithm_in_plain_pytorch(tmp_path: Any) -> None:
    spec = small_spec(
        recipe={"batch_norm": True},  # so peers that are seen again are seen in training's normalisation
        method={"kind": "deep_mutual_learning", "order": "sequential", "temperature": 2.0, "weight": 0.5},
        training={"schedule": {"kind": "constant"}},
        replicas={"count": 1},
    )
    run = new_run(tmp_path, spec)
    run_in_turns(run)
    recipe = open_recipe(spec)
    seed_everything(spec.seed, 0, "train", "init")
    nets = [recipe.build_model() for _ in range(2)]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4) for net in nets]
    batches = training_batches(recipe.split("train"), spec.data, Replica(0, 1, spec.seed), spec.training.batch_size)
    for step in range(spec.training.steps):
        batch = batches(step)
        for net, other, optimizer in ((nets[0], nets[1], optimizers[0]), (nets[1], nets[0], optimizers[1])):
            mine, theirs = net(batch.views["x"])["logits"], other(batch.views["x"])["logits"].detach()
            softened = F.log_softmax(mine / 2, dim=-1)
            distill = 4 * F.kl_div(softened, F.softmax(theirs / 2, dim=-1), reduction="batchmean")
            optimizer.zero_grad()
            (F.cross_entropy(mine, batch.y) + 0.5 * distill).backward()
            optimizer.step()
    for name, weights in nets[0].named_parameters():
        assert_close(final_weights(run, 0)[name], weights.detach(), atol=1e-6, rtol=0)
