"""Hours of CPU and GPU that jobs have reserved: from the beginning of their first attempt to their end, or to now.

What a job reserved nobody else could use, whether its processes did or not: restarts and pauses between attempts count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jobs.job import Job

HOUR_S = 3600.0


@dataclass(frozen=True)
class Usage:
    """Of one owner."""

    owner: str
    jobs: int
    """That have begun."""
    cpu_s: float
    gpu_s: float
    stored_bytes: int = 0
    """What those of them that are there have left in the storage, when that was last looked at."""

    def as_json(self) -> dict[str, Any]:
        used = hours(self.cpu_s, self.gpu_s)
        return {"owner": self.owner, "jobs": self.jobs, **used, "stored_bytes": self.stored_bytes}


def hours(cpu_s: float, gpu_s: float) -> dict[str, float]:
    """As they are shown."""
    return {"cpu_hours": round(cpu_s / HOUR_S, 6), "gpu_hours": round(gpu_s / HOUR_S, 6)}


def usage_of(job: Job, now: float) -> dict[str, float]:
    """Hours that one job has reserved until `now`."""
    if job.started_at is None:
        return hours(0.0, 0.0)
    held_s = max(0.0, (now if job.ended_at is None else job.ended_at) - job.started_at) * job.ranks
    return hours(held_s * job.cpus, held_s * job.gpus)
