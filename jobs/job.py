"""What the service knows about a job: plain values, between the store and everybody else."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from codistill.capacity import Demand
from codistill.spec import JobSpec
from codistill.spec_errors import parse_spec
from jobs.status import State

_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"


def new_job_id(name: str) -> str:
    """`name`, cut to fit, and six random letters or digits."""
    tail = "".join(secrets.choice(_ID_LETTERS) for _ in range(6))
    return f"{name[:56].rstrip('-')}-{tail}"


@dataclass(frozen=True)
class Reason:
    """Why a job is where it is."""

    code: str
    """Stable and short, for programs."""
    message: str
    """One sentence, for people."""
    replica: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "replica": self.replica}

    @staticmethod
    def from_json(value: Mapping[str, Any] | None) -> Reason | None:
        if not value:
            return None
        return Reason(str(value.get("code", "unknown")), str(value.get("message", "")), value.get("replica"))


@dataclass(frozen=True)
class Job:
    """One row of the store. Times are seconds since the epoch."""

    seq: int
    """Order of submission, ascending."""
    id: str
    owner: str
    parent: str | None
    """The job that this one goes on from."""
    priority: int
    ranks: int
    """Bundles of `cpus` and `gpus` that it reserves; each lives on one node."""
    cpus: float
    gpus: float
    name: str
    labels: Mapping[str, str]
    spec_json: Mapping[str, Any]
    state: State
    reason: Reason | None
    first_cause: Reason | None
    """Why the first attempt that was lost was lost; what a job that runs out of attempts fails with."""
    fence: int
    """Number of the current attempt; 0 before the first."""
    attempts: int
    submission_id: str | None
    created_at: float
    updated_at: float
    state_since: float
    started_at: float | None
    """When the first attempt began."""
    ended_at: float | None
    likeness: str | None
    """The same for jobs whose steps take equally long on the same machine."""
    estimate: Mapping[str, Any] | None
    """What it was said to take."""
    memory_bytes: int = 0
    """Of each bundle; 0 where it is not known."""
    stored_bytes: int = 0
    """What it has left in the storage, when that was last looked at."""
    measured_at: float | None = None
    """When that was; None: not yet."""

    @cached_property
    def spec(self) -> JobSpec:
        return parse_spec(self.spec_json)

    @property
    def demand(self) -> Demand:
        return Demand(self.ranks, self.cpus, self.gpus, self.memory_bytes)


@dataclass(frozen=True)
class Transition:
    """One change of state."""

    state: State
    fence: int
    reason: Reason | None
    time: float


@dataclass(frozen=True)
class Change:
    """A transition as the service tells of it to whoever listens."""

    seq: int
    """Order of all changes of all jobs, ascending."""
    job_id: str
    transition: Transition
