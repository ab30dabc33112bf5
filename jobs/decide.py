"""What should happen to a job now: pure functions of what is known, tried with plain values in the tests.

`jobs.manager` gathers a `View`, calls `decide`, and does what the answer says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, assert_never

from codistill.progress import OVER
from codistill.spec import Limits, replica_name
from jobs.deadlines import end_by, start_by
from jobs.job import Job, Reason
from jobs.status import State

STOP_PATIENCE_S = 30.0
"""How long replicas may take over their last checkpoint before their driver is stopped."""
MAX_BACKOFF_S = 60.0

DEADLINES = {"start_deadline", "max_runtime"}
"""Reasons for which a job is ended that make it FAILED, not CANCELLED."""


class Driver(Enum):
    """What the runner knows of the driver of the current attempt."""

    ABSENT = "absent"
    """Never submitted, or the cluster has forgotten it."""
    ALIVE = "alive"
    ENDED = "ended"


@dataclass(frozen=True)
class View:
    """All that a decision may depend on."""

    job: Job
    driver: Driver
    driver_message: str | None
    result: Mapping[str, Any] | None
    """result.json of the current fence. Older fences are never read."""
    beats: Mapping[str, Mapping[str, Any]]
    """Heartbeats of the current fence by replica."""
    stop_requested: bool
    leaked: bool
    """Whether a driver of an older fence is still alive."""
    now: float


# ---------------------------------------------------------------- the answers


@dataclass(frozen=True)
class Nothing:
    """Leave it as it is."""


@dataclass(frozen=True)
class Move:
    """Change the state."""

    to: State
    reason: Reason | None = None
    first_cause: Reason | None = None


@dataclass(frozen=True)
class Begin:
    """Commit a new attempt with this fence; it is submitted afterwards, when `STARTING` is seen without a driver."""

    fence: int


@dataclass(frozen=True)
class Submit:
    """Start the driver of the current fence."""


@dataclass(frozen=True)
class RequestStop:
    """Ask the replicas to write a last checkpoint and end."""


@dataclass(frozen=True)
class StopDriver:
    """End the driver of the current fence."""


@dataclass(frozen=True)
class StopLeaked:
    """End every living driver of an older fence."""


Decision = Nothing | Move | Begin | Submit | RequestStop | StopDriver | StopLeaked


def decide(view: View) -> Decision:
    """What to do about one job that is past QUEUED and not final."""
    state = view.job.state
    if state is State.ADMITTED:
        return Begin(1)
    if (ended := _outcome(view)) is not None:
        return ended
    match state:
        case State.STARTING:
            return _starting(view)
        case State.RUNNING:
            return _running(view)
        case State.RECOVERING:
            return _recovering(view)
        case State.CANCELLING:
            return _cancelling(view)
        case State.QUEUED | State.SUCCEEDED | State.FAILED | State.CANCELLED:
            return Nothing()
        case _:
            assert_never(state)


def _outcome(view: View) -> Move | None:
    """What the result of the current attempt makes of the job; None while there is none."""
    if view.result is None:
        return None
    reason = Reason.from_json(view.result.get("reason"))
    match view.result.get("outcome"):
        case "succeeded":
            return Move(State.SUCCEEDED, reason)
        case "cancelled":
            return _end_of_stop(view, reason)
        case "failed":
            return Move(State.FAILED, reason or Reason("driver_error", "the attempt failed and gave no reason"))
        case other:
            return Move(State.FAILED, Reason("bad_result", f"the attempt ended with the unknown outcome {other!r}"))


def _end_of_stop(view: View, reason: Reason | None) -> Move:
    asked = view.job.reason if view.job.state is State.CANCELLING else None
    if asked is not None and asked.code in DEADLINES:
        return Move(State.FAILED, asked)
    return Move(State.CANCELLED, asked or reason)


def _starting(view: View) -> Decision:
    if view.driver is Driver.ENDED:
        return _lost(view)
    if (late := _overdue(view)) is not None:
        return late
    if view.driver is Driver.ABSENT:
        return StopLeaked() if view.leaked else Submit()
    if _all_stepped(view):
        return Move(State.RUNNING)
    limits = _limits(view)
    deadline = start_by(view.job, limits)
    if deadline is not None and view.now > deadline:
        waiting = ", ".join(_without_step(view))
        message = f"no first step of {waiting} within limits.start_deadline_s ({limits.start_deadline_s:g} s)"
        return Move(State.CANCELLING, Reason("start_deadline", message))
    return Nothing()


def _running(view: View) -> Decision:
    if view.driver is not Driver.ALIVE:
        return _lost(view)
    return _overdue(view) or Nothing()


def _recovering(view: View) -> Decision:
    if view.driver is Driver.ALIVE:  # the runner had only been wrong about its end
        return StopDriver()
    if (late := _overdue(view)) is not None:
        return late
    if view.leaked:
        return StopLeaked()
    if view.now - view.job.state_since < backoff_s(view.job.attempts):
        return Nothing()
    return Begin(view.job.fence + 1)


def _cancelling(view: View) -> Decision:
    if view.job.fence == 0 or view.driver is not Driver.ALIVE:
        return StopLeaked() if view.leaked else _end_of_stop(view, None)
    if not view.stop_requested:
        return RequestStop()
    if view.now - view.job.state_since > STOP_PATIENCE_S:
        return StopDriver()
    return Nothing()


def _lost(view: View) -> Move:
    """The driver is gone and left no result."""
    job, limits = view.job, _limits(view)
    ended = view.driver_message or "the cluster no longer knows it"
    cause = Reason("driver_lost", f"the driver of attempt {job.fence} ended without a result: {ended}")
    first = job.first_cause or cause
    if job.attempts >= limits.max_attempts:
        message = (
            f"{first.message} (attempt {job.attempts} of limits.max_attempts = {limits.max_attempts} was the last)"
        )
        return Move(State.FAILED, Reason(first.code, message, first.replica), first)
    return Move(State.RECOVERING, cause, first)


def _overdue(view: View) -> Move | None:
    limits = _limits(view)
    deadline = end_by(view.job, limits)
    if deadline is None or view.now <= deadline:
        return None
    message = f"the job ran longer than limits.max_runtime_s ({limits.max_runtime_s:g} s)"
    return Move(State.CANCELLING, Reason("max_runtime", message))


def backoff_s(attempts: int) -> float:
    """Wait before the next attempt: 1 s after the first, then twice as long each time."""
    return min(MAX_BACKOFF_S, 2.0 ** (attempts - 1))


def _limits(view: View) -> Limits:
    return view.job.spec.limits


def _without_step(view: View) -> list[str]:
    names = [replica_name(index) for index in range(view.job.spec.replicas.count)]
    return [name for name in names if not has_stepped(view.beats.get(name))]


def _all_stepped(view: View) -> bool:
    return not _without_step(view)


def has_stepped(beat: Mapping[str, Any] | None) -> bool:
    """Whether a replica has made a step in this attempt, or will make none any more; a resumed one may stand at a high
    step without."""
    return beat is not None and (beat.get("first_step_at") is not None or beat.get("state") in {"finishing", *OVER})
