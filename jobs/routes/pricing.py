"""What a job will take, told to whoever is about to submit it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from codistill.price import PastRun, estimate, likeness, past_run
from codistill.run_dir import read_json
from codistill.spec import JobSpec
from jobs.callers import Caller
from jobs.job import Job
from jobs.routes.backend import Backend

RUNS = 10
"""The newest of those that were alike are looked at."""


def price_of(backend: Backend, caller: Caller, spec: JobSpec, *, steps_done: int = 0) -> dict[str, Any]:
    """The estimate; how fast others' jobs were is not told to those who may not see them."""
    alike = backend.store.alike(likeness(spec), owner=caller.sees, limit=RUNS)
    past = [run for job in alike if (run := _speed_of(backend, job)) is not None]
    return estimate(spec, backend.facts(spec), past, steps_done=steps_done)


def _speed_of(backend: Backend, job: Job) -> PastRun | None:
    # A run directory may have been taken away, or be of an older version, with other keys.
    with suppress(OSError, ValueError, LookupError, TypeError):
        return past_run(read_json(backend.run_of(job).result(job.fence)))
    return None
