"""What a store is asked for, and how it says no."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from codistill.spec import JobSpec
from jobs.callers import LOCAL, Caller
from jobs.status import State


class LostRace(RuntimeError):
    """Somebody else changed the job first, or the lease has gone to another manager: look again, then decide again."""


class KeyConflict(RuntimeError):
    """An idempotency key was used before, for another request."""


class ParentGone(RuntimeError):
    """The job to go on from has been deleted."""


class StillNeeded(RuntimeError):
    """Another job is to go on from this one, or learns from it; the message names it."""


class StorageTaken(RuntimeError):
    """An owner's jobs have left as much in the storage as they may; the message says how much."""


class QueueFull(RuntimeError):
    """As many jobs wait as may; the message says of whom."""


@dataclass(frozen=True)
class Quota:
    """How many jobs may wait."""

    queued: int = 1000
    queued_per_owner: int = 100
    """Less than all, so that no owner can shut the others out."""
    stored_bytes_per_owner: int | None = None
    """How much an owner's jobs may have left in the storage for another to be taken; None: as much as there is room."""

    @staticmethod
    def alone(queued: int = 1000, stored_bytes: int | None = None) -> Quota:
        """Where there is one owner."""
        return Quota(queued, queued_per_owner=queued, stored_bytes_per_owner=stored_bytes)


@dataclass(frozen=True)
class Submission:
    """A job to be added."""

    spec: JobSpec
    by: Caller = LOCAL
    parent: str | None = None
    action: str = "submit"
    """What the audit calls it."""
    key: str | None = None
    """Of the same caller, the same key means the same job."""
    digest: str = ""
    """Of all that was asked for, to see whether it is the same."""
    estimate: Mapping[str, Any] | None = None
    """What the caller was told that it will take."""


@dataclass(frozen=True)
class Filter:
    """Which jobs to list; what is None or empty lets all pass."""

    owner: str | None = None
    states: Sequence[State] = ()
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    name: str | None = None
    parent: str | None = None
    created_from: float | None = None
    created_before: float | None = None


STANDARD = Quota()
ALL = Filter()
