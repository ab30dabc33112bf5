"""Predictions of text between workers, through the object store: found by sample, and told again bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from codistill import records
from codistill.replay import replay
from tests.datasets import write_text
from tests.ray.running import beside, create, ledger, spec_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

STEPS, SAMPLES, BATCH = 120, 40, 32


@pytest.mark.slow
def test_workers_learn_from_what_the_other_said_of_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "data")
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path / "data"))
    spec = spec_of(
        STEPS,
        recipe={"kind": "text", "context": 32, "width": 8, "layers": 1, "heads": 2, "train_size": SAMPLES},
        exchange={"currency": {"kind": "predictions"}, "interval_steps": 10, "keep_snapshots": True},
    )
    run = create(tmp_path, spec)
    with beside(run) as ended:
        result = ended()
    assert result["outcome"] == "succeeded"
    for index in range(2):
        metrics = records.read(run, f"replica-{index}", "metrics")
        found, missed = (records.values(metrics, f"predictions/{name}")[1][-1] for name in ("found", "missed"))
        heard = [row["step"] for row in ledger(run, f"replica-{index}") if row["verdict"] == "accepted"]
        # A snapshot of ten steps speaks of all samples, and whoever has heard one asks for each of a batch.
        assert (found, missed) == (BATCH * (STEPS - min(heard)), 0)
        assert replay(run, index).first_difference is None
