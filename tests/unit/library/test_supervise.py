"""The local runner and replicas that do not stop, as stand-ins that never end unless they are killed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codistill import signals, supervise
from codistill.outcome import Reason, ReplicaOutcome
from codistill.run_dir import write_json
from codistill.supervise import Supervisor
from tests.support import new_run, small_spec

Supervised = Callable[..., tuple[dict[str, ReplicaOutcome], Reason | None]]


@pytest.fixture
def supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervised:
    """How an attempt ends whose replicas hang; `polled` is called whenever the runner has looked at one of them."""
    monkeypatch.setattr(supervise, "POLL_S", 0.001)
    run = new_run(tmp_path, small_spec())

    def until_all_ended(polled: Callable[[], None] = lambda: None, *, begun: bool = True, **limits: float) -> Any:
        class Hanging:
            def __init__(self, run: Any, fence: int, index: int, **_: Any) -> None:
                self.killed, self.give_up = False, time.monotonic() + 10
                beat = {"first_step_at": 1.0 if begun or index == 0 else None, "step": 7}
                write_json(run.heartbeat(fence, f"replica-{index}"), beat)

            def poll(self) -> int | None:
                polled()
                assert time.monotonic() < self.give_up, "nobody killed it"
                return -9 if self.killed else None

            def kill(self) -> None:
                self.killed = True

        monkeypatch.setattr(supervise, "ReplicaProcesses", Hanging)
        return Supervisor(run, small_spec(limits=limits), 1).until_all_ended()

    return until_all_ended


def test_whoever_has_not_stopped_in_time_is_killed(supervised: Supervised, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "KILL_AFTER_S", 0.2)
    began = time.monotonic()
    outcomes, reason = supervised(max_runtime_s=0.05)
    assert time.monotonic() - began > 0.25, "they were given their time"
    assert reason == Reason("max_runtime", "it ran longer than limits.max_runtime_s = 0.05")
    error = (
        "killed, since it had not stopped 0.2 s after it was asked to; what it did after its last checkpoint is lost"
    )
    expected = ReplicaOutcome("cancelled", steps=7, incarnations=1, error=error)
    assert outcomes == {"replica-0": expected, "replica-1": expected}


def test_a_second_signal_does_not_wait(supervised: Supervised, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "ECHO_S", 0.2)
    began: list[float] = []

    def twice() -> None:
        if not began:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)  # at once: an echo
            began.append(time.monotonic())
        elif time.monotonic() - began[0] > 0.3 and len(began) == 1:
            signal.raise_signal(signal.SIGINT)
            began.append(time.monotonic())

    outcomes, reason = supervised(twice)
    assert len(began) == 2, "an echo of the first is no second one"
    assert reason is None
    assert {one.outcome for one in outcomes.values()} == {"cancelled"}
    assert (outcomes["replica-1"].error or "").startswith("killed at a second signal; ")


def test_who_makes_no_first_step_in_time_ends_the_attempt(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "KILL_AFTER_S", 0.0)
    _, reason = supervised(begun=False, start_deadline_s=0.05)
    assert reason is not None
    assert reason.code == "start_deadline"
    assert reason.message.startswith("replica-1 had not made a first step after limits.start_deadline_s = 0.05: ")
