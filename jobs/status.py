"""The states of a job, and the one table of legal changes between them."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a job is. The last three are final: nothing ever leaves them."""

    QUEUED = "QUEUED"
    """Accepted; waits for room."""
    ADMITTED = "ADMITTED"
    """Its resources are reserved; nothing has been started."""
    STARTING = "STARTING"
    """A driver is being started, or runs and not every replica has made a step."""
    RUNNING = "RUNNING"
    """Every replica has made a step in this attempt."""
    CANCELLING = "CANCELLING"
    """Being ended, by a user or a deadline; replicas write a last checkpoint."""
    RECOVERING = "RECOVERING"
    """The driver is gone without a result; the next attempt is due."""
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})

RESERVING = frozenset({State.ADMITTED, State.STARTING, State.RUNNING, State.CANCELLING, State.RECOVERING})
"""States in which a job holds its reservation."""

NEXT: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.ADMITTED, State.FAILED, State.CANCELLED}),
    State.ADMITTED: frozenset({State.STARTING, State.CANCELLING, State.FAILED}),
    State.STARTING: frozenset({State.RUNNING, State.RECOVERING, State.CANCELLING, *TERMINAL}),
    State.RUNNING: frozenset({State.RECOVERING, State.CANCELLING, *TERMINAL}),
    State.RECOVERING: frozenset({State.STARTING, State.CANCELLING, *TERMINAL}),
    State.CANCELLING: TERMINAL,
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


class IllegalTransition(RuntimeError):
    """A change that the table does not allow: a bug of the caller."""


def check(old: State, new: State) -> None:
    """Raise `IllegalTransition` unless a job may go from `old` to `new`."""
    if new not in NEXT[old]:
        allowed = ", ".join(sorted(NEXT[old])) or "nothing: it is final"
        raise IllegalTransition(f"a job may not go from {old} to {new}; from {old} it may go to {allowed}")
