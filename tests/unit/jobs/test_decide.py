"""What should happen to a job, as a table: one row per situation."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.decide import (
    Begin,
    Decision,
    Driver,
    Move,
    Nothing,
    RequestStop,
    StopDriver,
    StopLeaked,
    Submit,
    View,
    backoff_s,
    decide,
)
from jobs.job import Reason
from jobs.status import State
from tests.unit.jobs.fakes import NOW, beat, job, result, spec

DEADLINE = Reason("start_deadline", "too late")
ASKED = Reason("cancel_requested", "a user asked for it")
FIRST = Reason("driver_lost", "the very first")


def view(state: State, driver: Driver = Driver.ALIVE, **change: Any) -> View:
    fields = {"result": None, "beats": {}, "stop_requested": False, "leaked": False, "now": NOW}
    known = {key: change.pop(key) for key in list(change) if key in fields}
    return View(job=job(state, **change), driver=driver, driver_message="exit code -9", **{**fields, **known})


def ended(outcome: str) -> dict[str, Any]:
    return result("a-aaaaaa", 1, outcome)


BOTH = {"replica-0": beat(0), "replica-1": beat(1)}
ALIVE, ENDED, ABSENT = Driver.ALIVE, Driver.ENDED, Driver.ABSENT
LIMITS = spec(limits={"start_deadline_s": 300, "max_runtime_s": 9}).model_dump(mode="json")

TABLE: list[tuple[str, View, Decision | State]] = [
    ("admitted begins", view(State.ADMITTED, ABSENT), Begin(1)),
    ("not yet submitted", view(State.STARTING, ABSENT), Submit()),
    ("an old driver first", view(State.STARTING, ABSENT, leaked=True), StopLeaked()),
    ("no step yet", view(State.STARTING, beats={"replica-0": beat(0, step=0)}), Nothing()),
    ("one of two stepped", view(State.STARTING, beats={"replica-0": beat(0)}), Nothing()),
    ("all stepped", view(State.STARTING, beats=BOTH), State.RUNNING),
    ("late start", view(State.STARTING, state_since=NOW - 301), State.CANCELLING),
    ("start just in time", view(State.STARTING, state_since=NOW - 299), Nothing()),
    ("lost while starting", view(State.STARTING, ENDED), State.RECOVERING),
    ("running on", view(State.RUNNING, beats=BOTH), Nothing()),
    ("lost", view(State.RUNNING, ENDED), State.RECOVERING),
    ("forgotten by the cluster", view(State.RUNNING, ABSENT), State.RECOVERING),
    ("lost for the last time", view(State.RUNNING, ENDED, attempts=3), State.FAILED),
    ("too long", view(State.RUNNING, spec_json=LIMITS), State.CANCELLING),
    ("too long, yet done", view(State.RUNNING, spec_json=LIMITS, result=ended("succeeded")), State.SUCCEEDED),
    ("succeeded", view(State.RUNNING, result=ended("succeeded")), State.SUCCEEDED),
    ("succeeded, driver gone", view(State.RUNNING, ENDED, result=ended("succeeded")), State.SUCCEEDED),
    ("failed", view(State.STARTING, ENDED, result=ended("failed")), State.FAILED),
    ("stopped from outside", view(State.RUNNING, ENDED, result=ended("cancelled")), State.CANCELLED),
    ("a result nobody knows", view(State.RUNNING, result=ended("perhaps")), State.FAILED),
    ("backing off", view(State.RECOVERING, ENDED), Nothing()),
    ("backed off", view(State.RECOVERING, ENDED, state_since=NOW - 1.1), Begin(2)),
    ("second back-off is longer", view(State.RECOVERING, ENDED, attempts=2, state_since=NOW - 1.1), Nothing()),
    ("old driver before the next", view(State.RECOVERING, ENDED, leaked=True, state_since=NOW - 9), StopLeaked()),
    ("it was not lost after all", view(State.RECOVERING, ALIVE, state_since=NOW - 9), StopDriver()),
    ("a result after all", view(State.RECOVERING, ENDED, result=ended("succeeded")), State.SUCCEEDED),
    ("cancel: ask", view(State.CANCELLING), RequestStop()),
    ("cancel: wait", view(State.CANCELLING, stop_requested=True, state_since=NOW - 29), Nothing()),
    ("cancel: stop", view(State.CANCELLING, stop_requested=True, state_since=NOW - 31), StopDriver()),
    ("cancel: gone", view(State.CANCELLING, ENDED, reason=ASKED), State.CANCELLED),
    ("cancel: never started", view(State.CANCELLING, ABSENT, fence=0), State.CANCELLED),
    ("cancel: done first", view(State.CANCELLING, reason=ASKED, result=ended("succeeded")), State.SUCCEEDED),
    ("cancel: as asked", view(State.CANCELLING, reason=ASKED, result=ended("cancelled")), State.CANCELLED),
    ("deadline: as asked", view(State.CANCELLING, reason=DEADLINE, result=ended("cancelled")), State.FAILED),
    ("deadline: gone", view(State.CANCELLING, ENDED, reason=DEADLINE), State.FAILED),
    ("cancel: an old driver lives", view(State.CANCELLING, ABSENT, reason=ASKED, leaked=True), StopLeaked()),
    ("nothing to do for the queue", view(State.QUEUED, ABSENT), Nothing()),
    ("final is final", view(State.FAILED, ENDED), Nothing()),
]


@pytest.mark.parametrize(("situation", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_decisions(situation: View, expected: Decision | State) -> None:
    decision = decide(situation)
    if isinstance(expected, State):
        assert isinstance(decision, Move)
        assert decision.to is expected
    else:
        assert decision == expected


def test_reasons_say_what_happened() -> None:
    late = decide(view(State.STARTING, beats={"replica-0": beat(0)}, state_since=NOW - 301))
    assert isinstance(late, Move)
    assert late.reason == Reason("start_deadline", "no first step of replica-1 within limits.start_deadline_s (300 s)")
    lost = decide(view(State.RUNNING, ENDED))
    assert isinstance(lost, Move)
    assert lost.reason == lost.first_cause
    assert lost.reason is not None
    assert lost.reason.message == "the driver of attempt 1 ended without a result: exit code -9"


def test_out_of_attempts_fails_with_the_first_cause() -> None:
    last = decide(view(State.RUNNING, ENDED, attempts=3, fence=3, first_cause=FIRST))
    assert isinstance(last, Move)
    assert last.reason is not None
    assert last.reason.code == "driver_lost"
    assert last.reason.message.startswith("the very first (attempt 3")
    again = decide(view(State.RUNNING, ENDED, attempts=2, fence=2, first_cause=FIRST))
    assert isinstance(again, Move)
    assert again.first_cause == FIRST


def test_a_deadline_keeps_its_reason_to_the_end() -> None:
    end = decide(view(State.CANCELLING, reason=DEADLINE, result=ended("cancelled")))
    assert isinstance(end, Move)
    assert end.reason == DEADLINE


def test_backoff_doubles_up_to_a_minute() -> None:
    assert [backoff_s(n) for n in (1, 2, 3, 4, 20)] == [1, 2, 4, 8, 60]
