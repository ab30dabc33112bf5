"""Runs as they look once they have ended, with made-up predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from codistill.compare.metrics import log_loss
from codistill.compare.predictions import Predictions
from codistill.outcome import ReplicaOutcome, attempt_result
from codistill.run_dir import RunDir, write_json
from codistill.spec import JobSpec
from tests.support import new_run, small_spec

Rows = Sequence[Sequence[float]]


def predictions(probabilities: Rows, labels: Sequence[int]) -> Predictions:
    """Of samples 0, 1, 2 ..."""
    ids = np.arange(len(labels))
    return Predictions(ids, np.zeros_like(ids), np.array(labels), np.log(np.array(probabilities)))


def write_rows(path: Path, probabilities: Rows, labels: Sequence[int], *, first_id: int = 0) -> None:
    """A file of predictions as a replica leaves it, in no particular order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with np.errstate(divide="ignore"):
        logs = np.log(np.asarray(probabilities, dtype=np.float64)).astype(np.float32)[::-1]
    ids = np.arange(first_id, first_id + len(labels))[::-1]
    columns = {
        "sample_id": pa.array(ids, pa.int64()),
        "position": pa.array(np.zeros(len(ids)), pa.int32()),
        "label": pa.array(list(labels)[::-1], pa.int64()),
        "log_probabilities": pa.FixedSizeListArray.from_arrays(pa.array(logs.ravel()), logs.shape[1]),
    }
    pq.write_table(pa.table(columns), path)


def ended_run(
    storage: Path,
    name: str,
    replicas: Mapping[str, tuple[Rows, Rows]],
    labels: Sequence[int],
    *,
    seed: int = 0,
    failed: Sequence[str] = (),
    first_id: int = 0,
    spec: JobSpec | None = None,
) -> RunDir:
    """A run that ended, whose replicas predicted what is given on (validation, test). By order of names, the first took
    2 s and each next one 1 s more; each received 100 bytes."""
    run = new_run(storage, spec or small_spec(seed=seed), name)
    for replica, splits in replicas.items():
        for split, probabilities in zip(("validation", "test"), splits, strict=True):
            path = run.replica(1, replica) / "predictions" / f"{split}.parquet"
            write_rows(path, probabilities, labels, first_id=first_id)
    outcomes = {
        replica: ReplicaOutcome(
            "succeeded",
            seconds=2.0 + index,
            bytes_received=100,
            metrics={"eval/log_loss": log_loss(predictions(replicas[replica][0], labels))},
        )
        for index, replica in enumerate(sorted(replicas))
    }
    outcomes |= {replica: ReplicaOutcome("failed", error="boom") for replica in failed}
    write_json(run.result(1), attempt_result(name, 1, outcomes, started_at=0.0, ended_at=9.0))
    return run
