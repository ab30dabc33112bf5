"""Jobs, in a list and whole."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from codistill.spec import JobSpec
from jobs.routes.shapes.examples import EXAMPLE_ID, SPEC_EXAMPLE, example
from jobs.routes.shapes.price import ESTIMATE_EXAMPLE, Estimate
from jobs.status import State

_REASON = {"code": "no_room_yet", "message": "waits for room: 2 CPUs are needed, 1 is free now", "replica": None}
_TIMES = {
    "created_at": "2026-11-01T09:30:00.000Z",
    "updated_at": "2026-11-01T09:30:01.250Z",
    "started_at": None,
    "ended_at": None,
}


class Why(BaseModel):
    """Why a job is where it is."""

    model_config = example(_REASON)

    code: str
    message: str
    replica: str | None


class Links(BaseModel):
    """Where to go on."""

    model_config = example({"self": f"/api/v1/jobs/{EXAMPLE_ID}"})

    self: str  # pyright: ignore[reportGeneralTypeIssues]


_STATUS = {"state": "QUEUED", "reason": _REASON, "attempts": 0, "queue_position": 3}
_SUMMARY = {
    "id": EXAMPLE_ID, "name": "pair", "owner": "local", "parent": None, "labels": {"team": "a"}, "priority": 0,
    "status": _STATUS, **_TIMES, "links": {"self": f"/api/v1/jobs/{EXAMPLE_ID}"},
}  # fmt: skip


class ShortStatus(BaseModel):
    """How a job is, in a list."""

    model_config = example(_STATUS)

    state: State
    reason: Why | None
    attempts: int
    queue_position: int | None


class JobSummary(BaseModel):
    """A job in a list."""

    model_config = example(_SUMMARY)

    id: str
    name: str
    owner: str
    parent: str | None
    labels: dict[str, str]
    priority: int
    status: ShortStatus
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    links: Links


class JobPage(BaseModel):
    """Jobs, newest first."""

    model_config = example({"items": [_SUMMARY], "next_cursor": None})

    items: list[JobSummary]
    next_cursor: int | None


class Progress(BaseModel):
    """Over all replicas."""

    model_config = example({"phase": "train", "completed": 240, "total": 1200, "unit": "steps"})

    phase: str | None
    completed: int
    total: int
    unit: str


class Change(BaseModel):
    """One change of state."""

    model_config = example({"state": "QUEUED", "fence": 0, "reason": None, "time": _TIMES["created_at"]})

    state: State
    fence: int
    reason: Why | None
    time: datetime


_DEADLINES = {"start_by": None, "end_by": None}
_USAGE = {"cpu_hours": 0.0, "gpu_hours": 0.0}


class Deadlines(BaseModel):
    """When a job is ended unless it has begun, or whatever it does; null where that cannot happen now."""

    model_config = example({"start_by": None, "end_by": "2026-11-02T09:31:00.000Z"})

    start_by: datetime | None
    """For the first step of every replica, while an attempt starts."""
    end_by: datetime | None


class JobUsage(BaseModel):
    """What a job has reserved, from the beginning of its first attempt until its end, or until now."""

    model_config = example({"cpu_hours": 1.5, "gpu_hours": 0.0})

    cpu_hours: float
    gpu_hours: float


_FULL = {
    **_STATUS, "fence": 0, "degraded": False, "transitions": [],
    "progress": {"phase": None, "completed": 0, "total": 1200, "unit": "steps"},
    "replicas": [
        {"replica": "replica-0", "state": None, "step": None, "seconds_since_beat": None, "teachers": []},
    ],
}  # fmt: skip


class FullStatus(ShortStatus):
    """How a job is."""

    model_config = example(_FULL)

    fence: int
    degraded: bool
    progress: Progress
    replicas: list[dict[str, Any]]
    """The newest heartbeat of each: state, step, attempt, node, teachers and their age."""
    transitions: list[Change]


_JOB = {
    **_SUMMARY, "status": _FULL, "spec": SPEC_EXAMPLE, "estimate": ESTIMATE_EXAMPLE, "deadlines": _DEADLINES,
    "usage": _USAGE, "result": None,
}  # fmt: skip


class Job(BaseModel):
    """A job."""

    model_config = example(_JOB)

    id: str
    name: str
    owner: str
    parent: str | None
    labels: dict[str, str]
    priority: int
    status: FullStatus
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    links: Links
    spec: dict[str, Any]
    estimate: Estimate | None
    """Told when it was submitted; None for jobs of before there were estimates."""
    deadlines: Deadlines
    usage: JobUsage
    result: dict[str, Any] | None
    """How it ended, with what it `took` beside the estimate."""


class Validated(BaseModel):
    """A spec that this service could run."""

    model_config = example({"spec": SPEC_EXAMPLE, "estimate": ESTIMATE_EXAMPLE})

    spec: JobSpec
    estimate: Estimate
