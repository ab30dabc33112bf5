"""The answers as they stand in the OpenAPI document, each with an example."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from codistill.spec import JobSpec
from jobs.routes.price_shapes import ESTIMATE_EXAMPLE, Estimate
from jobs.status import State

EXAMPLE_ID = "pair-k3x7qa"
_REASON = {"code": "no_room_yet", "message": "waits for room: 2 CPUs are needed, 1 is free now", "replica": None}
_TIMES = {
    "created_at": "2026-11-01T09:30:00.000Z",
    "updated_at": "2026-11-01T09:30:01.250Z",
    "started_at": None,
    "ended_at": None,
}
SPEC_EXAMPLE = {
    "name": "pair",
    "recipe": {"kind": "digits"},
    "method": {"kind": "codistillation"},
    "replicas": {"count": 2},
    "training": {"steps": 600},
}
SPEC_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/JobSpec"},
                "examples": {"two": {"value": SPEC_EXAMPLE}},
            }
        },
    }
}
"""A spec as a body: it is parsed by us and not by the framework, so that errors name the key and what is allowed."""
CHANGES_EXAMPLE = {"changes": {"training": {"steps": 1200}, "labels": {"again": "1"}}}
CHANGES_BODY: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"changes": {"type": "object", "description": "A part of a spec"}},
                    "additionalProperties": False,
                },
                "examples": {"longer": {"value": CHANGES_EXAMPLE}},
            }
        },
    }
}


def _example(value: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})


class Why(BaseModel):
    """Why a job is where it is."""

    model_config = _example(_REASON)

    code: str
    message: str
    replica: str | None


class Links(BaseModel):
    """Where to go on."""

    model_config = _example({"self": f"/api/v1/jobs/{EXAMPLE_ID}"})

    self: str  # pyright: ignore[reportGeneralTypeIssues]


_STATUS = {"state": "QUEUED", "reason": _REASON, "attempts": 0, "queue_position": 3}
_SUMMARY = {
    "id": EXAMPLE_ID, "name": "pair", "owner": "local", "parent": None, "labels": {"team": "a"}, "priority": 0,
    "status": _STATUS, **_TIMES, "links": {"self": f"/api/v1/jobs/{EXAMPLE_ID}"},
}  # fmt: skip


class ShortStatus(BaseModel):
    """How a job is, in a list."""

    model_config = _example(_STATUS)

    state: State
    reason: Why | None
    attempts: int
    queue_position: int | None


class JobSummary(BaseModel):
    """A job in a list."""

    model_config = _example(_SUMMARY)

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

    model_config = _example({"items": [_SUMMARY], "next_cursor": None})

    items: list[JobSummary]
    next_cursor: int | None


class Progress(BaseModel):
    """Over all replicas."""

    model_config = _example({"phase": "train", "completed": 240, "total": 1200, "unit": "steps"})

    phase: str | None
    completed: int
    total: int
    unit: str


class Change(BaseModel):
    """One change of state."""

    model_config = _example({"state": "QUEUED", "fence": 0, "reason": None, "time": _TIMES["created_at"]})

    state: State
    fence: int
    reason: Why | None
    time: datetime


class Status(BaseModel):
    """One word."""

    model_config = _example({"status": "ok"})

    status: str


_FULL = {
    **_STATUS, "fence": 0, "degraded": False, "transitions": [],
    "progress": {"phase": None, "completed": 0, "total": 1200, "unit": "steps"},
    "replicas": [
        {"replica": "replica-0", "state": None, "step": None, "seconds_since_beat": None, "teachers": []},
    ],
}  # fmt: skip


class FullStatus(ShortStatus):
    """How a job is."""

    model_config = _example(_FULL)

    fence: int
    degraded: bool
    progress: Progress
    replicas: list[dict[str, Any]]
    """The newest heartbeat of each: state, step, attempt, node, teachers and their age."""
    transitions: list[Change]


class Job(BaseModel):
    """A job."""

    model_config = _example(
        {**_SUMMARY, "status": _FULL, "spec": SPEC_EXAMPLE, "estimate": ESTIMATE_EXAMPLE, "result": None}
    )

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
    result: dict[str, Any] | None
    """How it ended, with what it `took` beside the estimate."""


class Validated(BaseModel):
    """A spec that this service could run."""

    model_config = _example({"spec": SPEC_EXAMPLE, "estimate": ESTIMATE_EXAMPLE})

    spec: JobSpec
    estimate: Estimate


class Thinned(BaseModel):
    """That rows were left out, and how many were there."""

    model_config = _example({"rows": 100_000, "kept": 1_800})

    rows: int
    kept: int


_ROWS: dict[str, Any] = {
    "items": [{"step": 10, "fence": 1, "incarnation": 0, "name": "train/loss", "value": 1.25}],
    "next_after_step": None,
    "thinned": None,
}


class Rows(BaseModel):
    """Rows of a table, ascending by step."""

    model_config = _example(_ROWS)

    items: list[dict[str, Any]]
    next_after_step: int | None
    """What to send as after_step for more; None when there are none now."""
    thinned: Thinned | None
    """None when every row is there."""


class Heard(BaseModel):
    """How often a replica met a teacher's snapshots, over all steps."""

    model_config = _example({"teacher": "replica-1", "verdict": "accepted", "rows": 360, "bytes_received": 1_206_912})

    teacher: str | None
    verdict: str
    rows: int
    bytes_received: int


class LedgerRows(Rows):
    """Rows of the ledger, and their sums."""

    model_config = _example({**_ROWS, "items": [], "totals": []})

    totals: list[Heard]
    """Of all rows, whatever was asked for."""


class Disagreement(BaseModel):
    """How much the models of one job differ on the test set."""

    model_config = _example(
        {"replicas": ["replica-0", "replica-1"], "flips": [[0.0, 0.02], [0.02, 0.0]], "missing": []}
    )

    replicas: list[str]
    flips: list[list[float]]
    """Share of samples whose most likely class differs, of every pair."""
    missing: list[str]
    """Replicas that have not written down what they predict; they do so when they end."""


_ARTIFACT = {
    "name": "export/replica-0/model.safetensors",
    "bytes": 14312,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "media_type": "application/octet-stream",
}


class Artifact(BaseModel):
    """A file that a job has left."""

    model_config = _example(_ARTIFACT)

    name: str
    bytes: int
    sha256: str | None
    media_type: str


class Artifacts(BaseModel):
    """All of them, in the order of names."""

    model_config = _example({"items": [_ARTIFACT]})

    items: list[Artifact]


class Waiting(BaseModel):
    """A job that waits."""

    model_config = _example({"id": EXAMPLE_ID, "name": "pair", "priority": 0, "position": 1})

    id: str
    name: str
    priority: int
    position: int


class Room(BaseModel):
    """Of a cluster."""

    model_config = _example({"cpus": 16.0, "gpus": 4.0})

    cpus: float
    gpus: float


class Queue(BaseModel):
    """Who waits, and for what."""

    model_config = _example(
        {
            "items": [{"id": EXAMPLE_ID, "name": "pair", "priority": 0, "position": 1}],
            "waiting": 1,
            "total": {"cpus": 16.0, "gpus": 4.0},
            "reserved": {"cpus": 15.0, "gpus": 4.0},
        }
    )

    items: list[Waiting]
    waiting: int
    """Of all owners."""
    total: Room
    reserved: Room


class Version(BaseModel):
    """Of the service and of its interface."""

    model_config = _example({"version": "0.1.0", "api": "v1"})

    version: str
    api: str


class BadKey(BaseModel):
    """One thing wrong with a request."""

    model_config = _example({"path": "method.kind", "message": "unknown kind 'sollo'", "allowed": ["solo"]})

    path: str
    message: str
    allowed: list[str]


class ProblemDetails(BaseModel):
    """An error, as RFC 9457 has it."""

    model_config = _example(
        {
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "code": "no_such_job",
            "detail": "there is no job with this id; GET /api/v1/jobs lists them",
            "request_id": "5f0c3a7e9b1d4e6f8a2b4c6d8e0f1a2b",
        }
    )

    type: str
    title: str
    status: int
    code: str
    """Stable, for programs."""
    detail: str
    """One sentence, for people."""
    request_id: str | None = None
    errors: list[BadKey] | None = None
