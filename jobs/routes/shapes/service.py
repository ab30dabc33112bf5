"""The service itself: health, version, queue."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel

from jobs.routes.shapes.examples import EXAMPLE_ID, example


class Status(BaseModel):
    """One word."""

    model_config = example({"status": "ok"})

    status: str


class Version(BaseModel):
    """Of the service and of its interface."""

    model_config = example({"version": "0.1.0", "api": "v1"})

    version: str
    api: str


class Waiting(BaseModel):
    """A job that waits."""

    model_config = example({"id": EXAMPLE_ID, "name": "pair", "priority": 0, "position": 1})

    id: str
    name: str
    priority: int
    position: int


class Room(BaseModel):
    """Of a cluster."""

    model_config = example({"cpus": 16.0, "gpus": 4.0})

    cpus: float
    gpus: float


class OwnersUsage(BaseModel):
    """What the jobs of an owner have reserved."""

    model_config = example(
        {"owner": "local", "jobs": 12, "cpu_hours": 48.5, "gpu_hours": 0.0, "stored_bytes": 7_300_000}
    )

    owner: str
    jobs: int
    """That have begun."""
    cpu_hours: float
    gpu_hours: float
    stored_bytes: int
    """What they have left in the storage, when that was last looked at; of deleted ones nothing."""


class Usages(BaseModel):
    """Of each owner that the caller sees."""

    model_config = example(
        {
            "items": [{"owner": "local", "jobs": 12, "cpu_hours": 48.5, "gpu_hours": 0.0, "stored_bytes": 7_300_000}],
            "as_of": "2026-11-01T09:30:00.000Z",
        }
    )

    items: list[OwnersUsage]
    as_of: datetime
    """Until when jobs that still hold their reservation count."""


class Queue(BaseModel):
    """Who waits, and for what."""

    model_config = example(
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
