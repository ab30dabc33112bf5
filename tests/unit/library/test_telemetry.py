"""The heartbeat outlives what fails around it."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from codistill import telemetry
from codistill.run_dir import RunDir, read_json
from codistill.telemetry import Beat, Telemetry
from tests.support import new_run, small_spec


def test_a_file_system_that_fails_for_a_while_neither_silences_nor_deafens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(telemetry, "INTERVAL_S", 0.002)
    run, asked, fine = new_run(tmp_path, small_spec()), RunDir.stop_requested, False

    def stop_requested(self: RunDir, fence: int) -> bool:
        if not fine:
            raise OSError(errno.ESTALE, "Stale file handle")
        return asked(self, fence)

    monkeypatch.setattr(RunDir, "stop_requested", stop_requested)
    beating = Telemetry(run, Beat("replica-0", fence=1, incarnation=0, steps=10))
    try:
        first = read_json(run.heartbeat(1, "replica-0"))["time"]
        wait_until(lambda: read_json(run.heartbeat(1, "replica-0"))["time"] > first)
        fine = True
        run.request_stop(1)
        wait_until(beating.stop_requested)
    finally:
        beating.close()
    assert "the heartbeat goes on after OSError: " in caplog.text


def test_new_metrics_leave_those_alone_that_are_being_written(tmp_path: Path) -> None:
    beating = Telemetry(new_run(tmp_path, small_spec()), Beat("replica-0", fence=1, incarnation=0, steps=10))
    beating.measured({"train/loss": 2.0})
    being_written = beating.beat.metrics
    beating.measured({"train/loss": float("nan"), "eval/accuracy": 0.5})
    beating.close()
    assert being_written == {"train/loss": 2.0}
    assert beating.beat.metrics == {"train/loss": None, "eval/accuracy": 0.5}


def wait_until(what: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 10
    while not what():
        assert time.monotonic() < give_up, "it did not come"
        time.sleep(0.002)
