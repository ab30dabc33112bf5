"""In what order the driver trains the arms of a job, and what ends them; Ray Train is a function here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cluster import watch
from cluster.driver import Attempt
from cluster.handles import Handles
from cluster.trainer import RunFailed, TrainRun
from codistill.outcome import Reason, ReplicaOutcome
from codistill.run_dir import RunDir
from codistill.telemetry import Beat
from jobs.decide import has_stepped
from tests.support import new_run, small_spec

Fit = Callable[[str], dict[str, Any]]
DONE: dict[str, Any] = {"outcome": "succeeded", "steps": 12}


def train_arms(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, fit: Fit
) -> tuple[dict[str, ReplicaOutcome], Reason | None, list[str]]:
    """The outcomes, the reason, and which replicas were started, in their order."""
    started: list[str] = []

    def fitted(self: TrainRun) -> dict[str, Any]:
        started.append(self.replica)
        return fit(self.replica)

    monkeypatch.setattr(TrainRun, "fit", fitted)
    monkeypatch.setattr(Handles, "_look", lambda self: False)
    monkeypatch.setattr(watch, "WATCH_INTERVAL_S", 0.01)
    attempt = Attempt(run, 1, say=lambda line: None)
    return *attempt._train_arms(run.read_spec(), "namespace", None), started


def new(tmp_path: Path, **limits: Any) -> RunDir:
    return new_run(tmp_path, small_spec(controls=["smoothing", "solo"], limits={"max_failures": 0, **limits}))


def test_each_control_follows_whole_after_the_arm_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes, reason, started = train_arms(new(tmp_path), monkeypatch, lambda name: time.sleep(0.05) or DONE)
    assert reason is None
    assert [sorted(started[at : at + 2]) for at in (0, 2, 4)] == [
        ["replica-0", "replica-1"], ["smoothing-0", "smoothing-1"], ["solo-0", "solo-1"],
    ]  # fmt: skip
    assert sorted(outcomes) == sorted(started)
    assert {entry.outcome for entry in outcomes.values()} == {"succeeded"}


def test_a_control_that_fails_keeps_no_other_from_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(name: str) -> dict[str, Any]:
        if name == "smoothing-1":
            raise RunFailed("boom", died=False)
        return DONE

    outcomes, reason, started = train_arms(new(tmp_path), monkeypatch, fit)
    assert (reason, len(started)) == (None, 6)
    assert [name for name, entry in outcomes.items() if entry.outcome != "succeeded"] == ["smoothing-1"]
    assert outcomes["smoothing-1"].error == "boom"


def test_no_control_follows_a_replica_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(name: str) -> dict[str, Any]:
        if name == "replica-1":
            raise RunFailed("boom", died=False)
        return DONE

    outcomes, reason, started = train_arms(new(tmp_path), monkeypatch, fit)
    assert reason is None
    assert sorted(outcomes) == sorted(started) == ["replica-0", "replica-1"]


def test_whoever_failed_before_its_first_step_is_waited_for_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new(tmp_path)

    def fit(name: str) -> dict[str, Any]:
        if name == "replica-1":
            raise RunFailed("its process died", died=True)
        return DONE

    outcomes, reason, _ = train_arms(run, monkeypatch, fit)
    assert (reason, outcomes["replica-1"].outcome) == (None, "failed")
    assert run.read_heartbeats(1)["replica-1"] | {"time": 0, "started_at": 0, "node": ""} == asdict(
        Beat("replica-1", 1, 0, 12, state="failed", pid=0, started_at=0, node="")
    )
    assert has_stepped(run.read_heartbeats(1)["replica-1"])


def test_after_a_stop_nothing_more_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new(tmp_path)

    def fit(name: str) -> dict[str, Any]:
        if name == "replica-1":
            time.sleep(0.05)
            run.request_stop(1)  # too late for this one
        return DONE

    outcomes, reason, started = train_arms(run, monkeypatch, fit)
    assert reason is None
    assert set(started) <= {"replica-0", "replica-1"}
    controls = [entry for name, entry in outcomes.items() if not name.startswith("replica")]
    assert [entry.outcome for entry in controls] == ["cancelled"] * 4


def test_the_start_deadline_counts_from_the_start_of_each_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new(tmp_path, start_deadline_s=1.0)
    outcomes, reason, _ = train_arms(run, monkeypatch, lambda name: time.sleep(0.4) or DONE)
    assert (reason, len(outcomes)) == (None, 6), "1.2 s in all, but no arm is late"

    late = new(tmp_path / "late", start_deadline_s=1.0)
    _, reason, _ = train_arms(late, monkeypatch, lambda name: time.sleep(1.3 * name.startswith("solo")) or DONE)
    assert reason is not None
    assert (reason.code, "solo-0, solo-1 had not made" in reason.message) == ("start_deadline", True)


def test_the_longest_runtime_counts_from_the_start_of_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new(tmp_path, max_runtime_s=0.5)
    outcomes, reason, started = train_arms(run, monkeypatch, lambda name: time.sleep(0.3) or DONE)
    assert reason is not None
    assert reason.code == "max_runtime"
    assert not [name for name in started if name.startswith("solo")]
    assert [outcomes[f"solo-{index}"].outcome for index in range(2)] == ["cancelled"] * 2
