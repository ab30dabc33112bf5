"""Label smoothing against a loop written out here, and against the run without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from codistill import records
from codistill.data.loader import training_batches
from codistill.phase import Replica
from codistill.randomness import seed_everything
from codistill.recipes import open_recipe
from codistill.spec import JobSpec
from tests.support import final_weights, fingerprint, new_run, run_in_turns, small_spec

SMOOTHED = {"kind": "label_smoothing", "epsilon": 0.3, "weight": 0.7, "burn_in_steps": 4}


FALLING = {"weight_schedule": {"kind": "linear", "final_factor": 0.0}}


def by_hand(spec: JobSpec, index: int) -> dict[str, torch.Tensor]:
    """Plain PyTorch: torch's own smoothing, which spreads over all ten classes, at 10/9 of the strength; over the 8
    steps after the burn-in it falls by an eighth a step."""
    recipe = open_recipe(spec)
    seed_everything(spec.seed, index, "train", "init")
    net = recipe.build_model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    replica = Replica(index, spec.replicas.count, spec.seed)
    batches = training_batches(recipe.split("train"), spec.data, replica, spec.training.batch_size)
    for step in range(spec.training.steps):
        batch = batches(step)
        logits = net(batch.views["x"])["logits"]
        loss = F.cross_entropy(logits, batch.y)
        if step >= 4:
            loss = loss + 0.7 * (12 - step) / 8 * F.cross_entropy(logits, batch.y, label_smoothing=0.3 * 10 / 9)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: p.detach() for name, p in net.state_dict().items()}


def test_it_is_torchs_own_smoothing_of_matched_strength_after_the_burn_in(tmp_path: Path) -> None:
    spec = small_spec(
        recipe={"batch_norm": False}, method=SMOOTHED | FALLING, training={"schedule": {"kind": "constant"}}
    )
    run = new_run(tmp_path, spec)
    results = run_in_turns(run)
    for index in range(2):
        found = final_weights(run, index)
        for name, value in by_hand(spec, index).items():
            assert_close(found[name], value, atol=1e-6, rtol=0)
        assert (results[index]["bytes_sent"], results[index]["bytes_received"]) == (0, 0)
    steps, epsilons = records.values(records.read(run, "replica-1", "metrics"), "smoothing/epsilon")
    assert steps == list(range(5, 13))
    assert epsilons == pytest.approx([0.3] * 8)
    _, weights = records.values(records.read(run, "replica-1", "metrics"), "smoothing/weight")
    assert weights == pytest.approx([0.7 * eighths / 8 for eighths in range(8, 0, -1)])


@pytest.mark.parametrize("change", [{"weight": 0.0}, {"burn_in_steps": 12}], ids=["weight 0", "burn-in = steps"])
def test_without_a_term_it_is_the_solo_run_bit_for_bit(tmp_path: Path, change: dict[str, Any]) -> None:
    smoothed = new_run(tmp_path, small_spec(method=SMOOTHED | change), "smoothed")
    plain = new_run(tmp_path, small_spec(method={"kind": "solo"}), "plain")
    run_in_turns(smoothed)
    run_in_turns(plain)
    for index in range(2):
        assert fingerprint(final_weights(smoothed, index)) == fingerprint(final_weights(plain, index))
