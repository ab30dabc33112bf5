"""Trackers: what reaches MLflow and W&B, read back from their files; and that none of them can end training."""

from __future__ import annotations

import json
import logging
import struct
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from codistill.run_dir import RunDir
from codistill.trackers import Guarded, Tracker, open_trackers
from tests.support import new_run, small_spec

needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="the extra `mlflow` is not installed")
needs_wandb = pytest.mark.skipif(find_spec("wandb") is None, reason="the extra `wandb` is not installed")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    # Set by the trackers themselves unless they are: restored after each test.
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "true")


class Failing:
    """Fails at every second call."""

    def __init__(self) -> None:
        self.calls = 0
        self.got: list[int] = []

    def add_values(self, step: int, values: Mapping[str, float]) -> None:
        self.flush()
        self.got.append(step)

    def flush(self) -> None:
        self.calls += 1
        if self.calls % 2 == 1:
            raise OSError("no space left")

    close = flush


def test_failures_are_counted_logged_once_and_raise_nothing(caplog: pytest.LogCaptureFixture) -> None:
    sink = Failing()
    tracker: Tracker = Guarded("x", lambda: sink)
    with caplog.at_level(logging.WARNING):
        for step in range(4):
            tracker.add_values(step, {"loss": 1.0})
        tracker.flush()
    assert (tracker.failures, sink.got) == (3, [1, 3])
    assert [record.getMessage() for record in caplog.records] == [
        "tracker x fails (add_values): OSError: no space left; training goes on"
    ]
    with caplog.at_level(logging.WARNING):
        tracker.close()
    assert tracker.failures == 3
    assert caplog.records[-1].getMessage() == "tracker x has failed 3 times in all"


def test_what_cannot_be_opened_counts_every_call_and_names_the_extra(caplog: pytest.LogCaptureFixture) -> None:
    def opener() -> Failing:
        raise ModuleNotFoundError("No module named 'mlflow'")

    tracker = Guarded("mlflow", opener)
    tracker.add_values(1, {"loss": 1.0})
    tracker.close()
    assert tracker.failures == 3
    assert "pip install 'codistill[mlflow]'" in caplog.records[0].getMessage()


def test_an_interrupt_is_not_a_failure_of_a_tracker() -> None:
    class Interrupted(Failing):
        def flush(self) -> None:
            raise KeyboardInterrupt

    tracker = Guarded("x", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        tracker.flush()


def test_tensorboard_has_one_directory_per_replica(tmp_path: Path) -> None:
    from tests.unit.library.test_mirror import curves

    run = new_run(tmp_path, small_spec())
    for resume_step, steps in [(0, (1, 2, 3)), (2, (3, 4))]:
        (tracker,) = open_trackers(["tensorboard"], run, "replica-1", run.read_spec(), resume_step)
        for step in steps:
            tracker.add_values(step, {"loss": float(step + 10 * resume_step)})
        tracker.close()
    shown = curves(run.root / "tensorboard" / "replica-1")
    assert shown == {"loss": [(1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0)]}


def test_no_names_no_trackers(tmp_path: Path) -> None:
    assert open_trackers([], new_run(tmp_path, small_spec()), "replica-0", small_spec()) == []


# ---------------------------------------------------------------- MLflow


def mlflow_runs(run: RunDir) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(run.root / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("job")
    assert experiment is not None
    return {found.info.run_name: (client, found) for found in client.search_runs([experiment.experiment_id])}


@needs_mlflow
def test_mlflow_holds_values_and_spec_in_the_run_directory(tmp_path: Path) -> None:
    run = new_run(tmp_path, small_spec(seed=7))
    for replica in ("replica-0", "replica-1"):
        (tracker,) = open_trackers(["mlflow"], run, replica, run.read_spec())
        tracker.add_values(10, {"train/loss": 0.5, "eval/log_loss": 1.75})
        tracker.add_values(20, {"train/loss": 0.25})
        tracker.close()
        assert tracker.failures == 0
    runs = mlflow_runs(run)
    assert set(runs) == {"job/replica-0", "job/replica-1"}
    client, found = runs["job/replica-1"]
    assert found.info.status == "FINISHED"
    assert (found.data.params["seed"], found.data.params["recipe.kind"]) == ("7", "digits")
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(10, 0.5), (20, 0.25)]


@needs_mlflow
def test_a_resumed_replica_goes_on_with_its_mlflow_run_and_no_step_is_there_twice(tmp_path: Path) -> None:
    run = new_run(tmp_path, small_spec())
    for resume_step, steps in [(0, (1, 2, 3)), (1, (2, 3, 4))]:
        (tracker,) = open_trackers(["mlflow"], run, "replica-0", run.read_spec(), resume_step)
        for step in steps:
            tracker.add_values(step, {"loss": float(step + 10 * resume_step)})
        assert tracker.failures == 0
    runs = mlflow_runs(run)
    client, found = runs["job/replica-0"]
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 14.0)]
    assert found.info.status == "RUNNING"


@needs_mlflow
def test_mlflow_goes_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere.as_uri())
    run = new_run(tmp_path / "runs", small_spec())
    (tracker,) = open_trackers(["mlflow"], run, "replica-0", run.read_spec())
    assert tracker.failures == 0
    assert elsewhere.is_dir()
    assert not (run.root / "mlflow").exists()


# Forked once MLflow is loaded, so that all of them open it within microseconds.
OPENED_BY_SEVERAL = """
import os, sys, time
from pathlib import Path
import mlflow
from codistill.run_dir import RunDir
from codistill.trackers import open_trackers
run = RunDir(Path(sys.argv[1]), "job")
spec, start_at, children = run.read_spec(), time.time() + 0.2, []
for index in range(4):
    if (child := os.fork()) == 0:
        while time.time() < start_at:
            pass
        (tracker,) = open_trackers(["mlflow"], run, f"replica-{index}", spec)
        tracker.add_values(1, {"loss": 1.0})
        tracker.close()
        os._exit(tracker.failures)
    children.append(child)
print(*[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


@needs_mlflow
def test_replicas_that_start_together_share_one_mlflow_store(tmp_path: Path) -> None:
    run = new_run(tmp_path, small_spec())
    done = subprocess.run(
        [sys.executable, "-c", OPENED_BY_SEVERAL, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.stderr) == (["0"] * 4, "")
    assert set(mlflow_runs(run)) == {f"job/replica-{index}" for index in range(4)}


# ---------------------------------------------------------------- Weights & Biases

# In a process of its own: W&B keeps threads and a helper process until the end of the one that uses it.
WANDB = """
import os, sys
from pathlib import Path
from codistill.run_dir import RunDir
from codistill.trackers import open_trackers
run = RunDir(Path(sys.argv[1]), "job")
(tracker,) = open_trackers(["wandb"], run, "replica-0", run.read_spec(), int(sys.argv[2]))
tracker.add_values(10, {"train/loss": 0.5, "eval/log_loss": 1.75})
tracker.add_values(20, {"train/loss": 0.25})
tracker.close()
sys.exit(tracker.failures)
"""


def wandb_records(path: Path) -> list[Any]:
    """All records of W&B's log, which is LevelDB's: blocks of 32 KiB, pieces with 7 bytes before each (checksum,
    length, kind: 1 whole, 2 first, 3 middle, 4 last), 7 bytes before all."""
    from wandb.proto import wandb_internal_pb2

    data, at, block, whole = path.read_bytes(), 7, 32_768, b""
    assert data[:4] == b":W&B"
    found: list[Any] = []
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return found


@needs_wandb
def test_wandb_is_offline_and_holds_values_and_spec(tmp_path: Path) -> None:
    run = new_run(tmp_path, small_spec(seed=7))
    done = subprocess.run(
        [sys.executable, "-c", WANDB, str(tmp_path), "4"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = run.root.glob("wandb/wandb/offline-run-*/run-*.wandb")
    records = wandb_records(path)
    (begun,) = [record.run for record in records if record.HasField("run")]
    assert (begun.project, begun.run_group, begun.display_name) == ("job", "job", "replica-0 from step 4")
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert (config["seed"], config["recipe"]["kind"], config["resume_step"]) == (7, "digits", 4)
    rows: dict[int, dict[str, float]] = {}
    for record in records:
        if record.HasField("history"):
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows[record.history.step.num] = row
    assert {step: row["train/loss"] for step, row in rows.items()} == {10: 0.5, 20: 0.25}
    assert rows[10]["eval/log_loss"] == 1.75
    # Neither the address of a git remote nor a command line.
    assert not any(record.HasField("files") and "wandb-metadata" in str(record.files) for record in records)
    assert not begun.git.remote_url


WANDB_KILLED = """
import os, signal, sys, time
from pathlib import Path
from codistill import mirror
mirror.FLUSH_INTERVAL_S = 0.1
from codistill.run_dir import RunDir
from codistill.trackers import open_trackers
run = RunDir(Path(sys.argv[1]), "job")
(tracker,) = open_trackers(["wandb"], run, "replica-0", run.read_spec())
for step in range(50):
    tracker.add_values(step, {"train/loss": float(step)})
time.sleep(2)
os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_wandb
def test_wandb_keeps_what_it_had_written_before_a_kill(tmp_path: Path) -> None:
    run = new_run(tmp_path, small_spec())
    subprocess.run([sys.executable, "-c", WANDB_KILLED, str(tmp_path)], capture_output=True, check=False)
    (path,) = run.root.glob("wandb/wandb/offline-run-*/run-*.wandb")
    steps = [record.history.step.num for record in wandb_records(path) if record.HasField("history")]
    assert steps == list(range(49))  # the last is kept open, for more values of the same step
