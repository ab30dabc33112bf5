"""Churn reduction: its loss on chosen logits, churn counted by hand, and that there is less of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from codistill.churn import changes
from codistill.methods import plan
from codistill.phase import Replica
from codistill.recipes import open_recipe
from tests.golden.said import S, Says, T, step_of
from tests.support import new_run, run_in_turns, small_spec


def test_the_loss_is_the_cross_entropy_to_a_mixed_target() -> None:
    spec = small_spec(method={"kind": "churn_reduction", "alpha": 0.25}, replicas={"count": 1})
    (update,) = plan(spec, open_recipe(spec), Replica(0, 1, 0))[-1].updates
    loss = update.loss(step_of({"teacher": [{"logits": torch.tensor([T]).double()}]}, net=Says(logits=S)))
    assert loss.value.item() == pytest.approx(0.75 * 0.4076060 + 0.25 * 0.6611215, abs=1e-6)
    mixed = 0.75 * torch.tensor([1.0, 0, 0]).double() + 0.25 * torch.tensor(T).double().softmax(-1)
    assert loss.value.item() == pytest.approx(-(mixed * torch.tensor(S).double().log_softmax(-1)).sum().item())


def test_churn_by_hand() -> None:
    new = torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.5, 0.5]]).log()
    old = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.9, 0.1]]).log()
    assert changes(new, old) == pytest.approx({"count": 3, "changed": 1, "moved": 0.2 + 0.3 + 0.4})
    assert changes(new, new) == {"count": 3, "changed": 0, "moved": 0}
    places = changes(new.reshape(1, 3, 2), old.reshape(1, 3, 2))
    assert places == pytest.approx(changes(new, old))


def trained(storage: Path, name: str, method: dict[str, Any], steps: int) -> tuple[dict[str, float], torch.Tensor]:
    """The last metrics of a run, and its log-probabilities on validation data."""
    training = {"steps": steps, "batch_size": 32, "log_interval_steps": 50, "checkpoint_interval_steps": 100}
    run = new_run(storage, small_spec(method=method, replicas={"count": 1}, training=training, seed=steps), name)
    (result,) = run_in_turns(run).values()
    table = pq.read_table(run.replica(1, "replica-0") / "predictions" / "validation.parquet")
    return result["metrics"], torch.tensor(table["log_probabilities"].to_pylist())


def test_a_successor_changes_less_and_says_how_much(tmp_path: Path) -> None:
    """Of an incumbent that is less sure than the labels, since on its training data it was not trained to the end."""
    _, incumbent = trained(tmp_path, "incumbent", {"kind": "solo"}, steps=30)
    soft: list[float] = []
    for alpha in (0.0, 0.9):
        method = {"kind": "churn_reduction", "alpha": alpha, "teacher": {"kind": "job", "job": "incumbent"}}
        metrics, said = trained(tmp_path, f"successor-{round(10 * alpha)}", method, steps=90)
        found = changes(said, incumbent)
        assert metrics["eval/churn"] == pytest.approx(found["changed"] / found["count"])
        assert metrics["eval/soft_churn"] == pytest.approx(found["moved"] / found["count"], abs=1e-6)
        soft.append(metrics["eval/soft_churn"])
    assert soft[1] < 0.8 * soft[0]
