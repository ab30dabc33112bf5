"""The comparison, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codistill.compare import NothingToCompare, compare
from codistill.evaluate import PREDICTIONS
from codistill.outcome import Reason, ReplicaOutcome, attempt_result
from codistill.run_dir import RunDir, write_json
from tests.support import new_run, small_spec


def ended_run(
    storage: Path, name: str, replicas: list[tuple[list[list[float]], list[list[float]]]], labels: list[int]
) -> RunDir:
    """A run that ended, whose replicas predicted what is given on (validation, test)."""
    run = new_run(storage, small_spec(), name)
    for index, splits in enumerate(replicas):
        for split, probabilities in zip(("validation", "test"), splits, strict=True):
            path = run.replica(1, f"replica-{index}") / "predictions" / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [
                {"sample_id": i, "label": label, "log_probabilities": np.log(p).tolist()}
                for i, (label, p) in enumerate(zip(labels, probabilities, strict=True))
            ]
            pq.write_table(pa.Table.from_pylist(rows[::-1], schema=PREDICTIONS), path)
    outcomes = {
        f"replica-{index}": ReplicaOutcome("succeeded", seconds=2.0 + index, bytes_received=100)
        for index in range(len(replicas))
    }
    write_json(run.result(1), attempt_result(name, 1, outcomes, started_at=0.0, ended_at=9.0))
    return run


SURE = [[0.9, 0.1], [0.2, 0.8]]
DOUBT = [[0.6, 0.4], [0.6, 0.4]]
WRONG = [[0.1, 0.9], [0.9, 0.1]]


def test_one_model_of_each_run_is_chosen_on_validation_and_scored_on_test(tmp_path: Path) -> None:
    labels = [0, 1]
    # Run a: replica 1 is better on validation, though worse on the test; it must be the one scored.
    a = ended_run(tmp_path, "a", [(DOUBT, SURE), (SURE, DOUBT)], labels)
    b = ended_run(tmp_path, "b", [(SURE, SURE), (WRONG, WRONG)], labels)
    row = compare({"pair": [a, b]}).rows[0]
    assert row.accuracy == pytest.approx((0.5 + 1.0) / 2)
    doubt, sure = -np.log([0.6, 0.4]).mean(), -np.log([0.9, 0.8]).mean()
    assert row.log_loss == pytest.approx((doubt + sure) / 2)
    assert row.mean_abs_difference == pytest.approx((0.3 + 0.3 + 0.4 + 0.4) / 4)
    assert row.flips == pytest.approx(0.5)
    assert row.seconds == pytest.approx(3.0)
    assert row.bytes_exchanged == 400


def test_the_ensemble_averages_probabilities_and_is_not_the_arm_to_serve(tmp_path: Path) -> None:
    labels = [0, 1]
    a, b = ended_run(tmp_path, "a", [(SURE, SURE)], labels), ended_run(tmp_path, "b", [(DOUBT, DOUBT)], labels)
    c, d = ended_run(tmp_path, "c", [(DOUBT, DOUBT)], labels), ended_run(tmp_path, "d", [(DOUBT, DOUBT)], labels)
    comparison = compare({"solo": [a, b], "pair": [c, d]}, ensemble_of="solo")
    assert [row.arm for row in comparison.rows] == ["solo", "pair", "ensemble of 2 solo"]
    both = comparison.rows[2]
    assert both.log_loss == pytest.approx(-np.log([0.75, 0.6]).mean())
    assert both.mean_abs_difference is None
    assert comparison.served.arm == "solo"
    text = comparison.as_text().splitlines()
    assert text[0].split() == ["arm", "accuracy", "log", "loss", "churn", "flips", "seconds", "exchanged"]
    assert text[3].split()[0] == "pair"


def test_what_has_not_ended_cannot_be_compared(tmp_path: Path) -> None:
    run = new_run(tmp_path, small_spec())
    with pytest.raises(NothingToCompare, match="job job has not ended"):
        compare({"solo": [run]})
    failed = attempt_result("job", 1, {}, started_at=0.0, ended_at=1.0, reason=Reason("no_capacity", "no room for it"))
    write_json(run.result(1), failed)
    with pytest.raises(NothingToCompare, match="ended as failed; only runs that succeeded"):
        compare({"solo": [run]})


@pytest.mark.parametrize(
    ("outcomes", "outcome", "degraded"),
    [
        (["succeeded", "succeeded"], "succeeded", False),
        (["succeeded", "failed"], "succeeded", True),
        (["failed", "failed"], "failed", False),
        (["succeeded", "cancelled"], "cancelled", False),
        (["failed", "cancelled"], "cancelled", False),
    ],
)
def test_how_an_attempt_ended(outcomes: list[str], outcome: str, degraded: bool) -> None:
    replicas = {
        f"replica-{i}": ReplicaOutcome(o, error="boom" if o == "failed" else None) for i, o in enumerate(outcomes)
    }
    result = attempt_result("job", 1, replicas, started_at=0.0, ended_at=1.0)
    assert (result["outcome"], result["degraded"]) == (outcome, degraded)
    assert (result["reason"] is not None) == ("failed" in outcomes)
    given = attempt_result("job", 1, replicas, started_at=0.0, ended_at=1.0, reason=Reason("max_runtime", "too long"))
    assert given["outcome"] == "failed"
    assert given["reason"]["code"] == "max_runtime"
