"""Metrics and ledger on disk: nothing counts twice, nothing is lost but what is repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from codistill import records
from codistill.records import METRICS, Recorder, compact
from codistill.run_dir import RunDir, StorageError
from tests.support import new_run, small_spec


def recorder(run: RunDir, fence: int, incarnation: int) -> Recorder:
    directory = run.replica(fence, "replica-0") / "metrics"
    return Recorder(directory, METRICS, fence=fence, incarnation=incarnation)


def read(run: RunDir) -> dict[str, list[tuple[int, float]]]:
    table = records.read(run, "replica-0", "metrics")
    return {name: list(zip(*records.values(table, name), strict=True)) for name in set(table["name"].to_pylist())}


def test_a_resumed_replica_replaces_what_it_repeats(tmp_path: Path) -> None:
    run = new_run(tmp_path, small_spec())
    first = recorder(run, 1, 0)
    for step in range(1, 7):
        first.add_values(step, {"loss": 10.0 + step})
    first.add_values(4, {"eval": 0.5})
    first.flush()
    second = recorder(run, 1, 1)  # resumed from step 3
    for step in range(4, 6):
        second.add_values(step, {"loss": 20.0 + step})
    second.flush()
    run.start_attempt(2, 0.0)
    third = recorder(run, 2, 0)  # a new attempt, resumed from step 4
    third.add_values(5, {"loss": 35.0})
    third.flush()
    assert read(run) == {
        "loss": [(1, 11.0), (2, 12.0), (3, 13.0), (4, 24.0), (5, 35.0), (6, 16.0)],
        "eval": [(4, 0.5)],
    }


def test_what_an_old_attempt_writes_late_is_never_read(tmp_path: Path) -> None:
    run = new_run(tmp_path, small_spec())
    zombie = recorder(run, 1, 0)
    zombie.add_values(1, {"loss": 11.0})
    zombie.flush()
    run.start_attempt(2, 0.0)
    zombie.add_values(2, {"loss": 12.0})  # a step that the new attempt has not reached
    zombie.flush()
    assert read(run) == {"loss": [(1, 11.0)]}
    third = recorder(run, 2, 0)
    third.add_values(2, {"loss": 22.0})
    third.flush()
    assert read(run) == {"loss": [(1, 11.0), (2, 22.0)]}


def test_compaction_changes_nothing(tmp_path: Path) -> None:
    run = new_run(tmp_path, small_spec())
    one = recorder(run, 1, 0)
    for step in range(5):
        one.add_values(step, {"loss": float(step)})
        one.flush()
    before = records.read(run, "replica-0", "metrics")
    directory = run.replica(1, "replica-0") / "metrics"
    parts = {path.name: path.read_bytes() for path in directory.iterdir()}
    compact(directory, METRICS)
    assert [path.name for path in directory.iterdir()] == ["all.parquet"]
    assert records.read(run, "replica-0", "metrics").equals(before)
    for name, content in parts.items():  # as a reader would see it in between
        (directory / name).write_bytes(content)
    assert records.read(run, "replica-0", "metrics").equals(before)


def test_nothing_written_is_an_empty_table(tmp_path: Path) -> None:
    run = new_run(tmp_path, small_spec())
    assert records.read(run, "replica-0", "ledger").num_rows == 0


def test_a_disk_that_refuses_is_one_sentence(tmp_path: Path) -> None:
    run = new_run(tmp_path, small_spec())
    one = recorder(run, 1, 0)
    one.add_values(1, {"loss": 1.0})
    directory = run.replica(1, "replica-0") / "metrics"
    directory.rename(directory.with_name("gone"))
    with pytest.raises(StorageError, match=r"cannot write .*part-0000-000000\.arrow"):
        one.flush()
