"""When a job has to have begun, and to have ended. Seconds since the epoch; None where it need not now."""

from __future__ import annotations

from codistill.spec import Limits
from jobs.job import Job
from jobs.status import State

LAST = 253_402_300_799.0
"""The end of the year 9999, after which no date is written; whoever may wait longer need not."""


def start_by(job: Job, limits: Limits) -> float | None:
    """When every replica has to have made its first step, while the current attempt starts."""
    return _before_the_last(job.state_since + limits.start_deadline_s) if job.state is State.STARTING else None


def end_by(job: Job, limits: Limits) -> float | None:
    """When the job is ended whatever it does, from the beginning of its first attempt on."""
    if job.started_at is None or job.state not in (State.STARTING, State.RUNNING, State.RECOVERING):
        return None
    return _before_the_last(job.started_at + limits.max_runtime_s)


def _before_the_last(when: float) -> float | None:
    return when if when <= LAST else None
