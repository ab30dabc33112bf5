"""The manager: one loop that brings every job forward, under a lease, never inside a request.

Each round looks at every job that is not final, asks `jobs.decide` what should happen, and does that one thing. It
keeps nothing in memory that matters: a new manager goes on from the store, the run directories and the cluster.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, assert_never

from codistill.capacity import Node
from codistill.inheritance import NothingToGoOnFrom, begin_from
from codistill.run_dir import RunDir, StorageError, read_json, write_json
from jobs.decide import (
    Begin,
    Decision,
    Driver,
    Move,
    Nothing,
    RequestStop,
    StopDriver,
    StopLeaked,
    Submit,
    View,
    decide,
)
from jobs.disks import Disks
from jobs.errors import StoreError
from jobs.job import Job, Reason
from jobs.pruner import Pruner
from jobs.queue import admit
from jobs.runner import Runner, RunnerError, submission_id
from jobs.status import RESERVING, State
from jobs.store import Store
from jobs.store_terms import LostRace
from jobs.stored import Measurer

log = logging.getLogger("codistill.manager")

LEAK_CHECK_INTERVAL_S = 5.0
STOP_REPEAT_S = 10.0
EXIT_GRACE_S = 15.0
"""How long the driver of a finished job may take to clean up before it counts as leaked."""


class Manager:
    """Looks, decides and acts; one `tick` is one round over all jobs. With `keep_days`, what ended longer ago goes."""

    def __init__(
        self,
        store: Store,
        runner: Runner,
        storage: Path,
        nodes: Callable[[], Sequence[Node]],
        clock: Callable[[], float] = time.time,
        *,
        keep_days: float | None = None,
        disks: Disks | None = None,
    ) -> None:
        self._store, self._runner, self._storage = store, runner, storage
        self._nodes, self._clock = nodes, clock
        self._disks = disks or Disks()
        self._stopped_at: dict[str, float] = {}
        self._leaks_checked_at = float("-inf")
        self._pruner = None if keep_days is None else Pruner(store, storage, keep_days, clock)
        self._measurer = Measurer(store, storage, clock)

    def tick(self, lease: int) -> None:
        """One round. Raises `StoreError`; what one job runs into is logged and tried again in the next round."""
        for job in self._store.in_states(RESERVING):
            self._guarded(job, lambda job=job: self._advance(job, lease))
        self._admit(lease)
        if self._clock() - self._leaks_checked_at >= LEAK_CHECK_INTERVAL_S:
            self._stop_drivers_of_finished_jobs()
            self._leaks_checked_at = self._clock()
        self._measurer.step()
        if self._pruner is not None:
            self._pruner.step()

    def _guarded(self, job: Job, action: Callable[[], Any]) -> None:
        try:
            action()
        except LostRace as error:
            log.info("%s", error)
        except RunnerError as error:
            log.warning("%s: %s; trying again", job.id, error)
        except StoreError:
            raise
        except Exception:  # one bad job must not hold up the others; it is logged in every round until mended
            log.exception("%s could not be brought forward", job.id)

    # ---- admission

    def _admit(self, lease: int) -> None:
        queued = self._store.standings([State.QUEUED])
        if not queued:
            return
        full = self._disks.shortage()
        answer = admit(queued, self._store.standings(RESERVING), self._nodes(), disk_full=full)
        for job in map(self._store.get, [standing.id for standing in answer.admitted]):
            if job is not None:
                self._guarded(job, lambda job=job: self._store.move(job, State.ADMITTED, lease=lease))
        first = None if answer.next is None else self._store.get(answer.next.id)
        why = answer.waits_for
        if first is not None and why is not None and why != first.reason:
            self._guarded(first, lambda: self._store.explain_wait(first, why, lease=lease))

    # ---- one job

    def _advance(self, job: Job, lease: int) -> None:
        self._act(job, decide(self._look(job)), lease)

    def _look(self, job: Job) -> View:
        run = RunDir(self._storage, job.id)
        started = job.fence > 0
        # The driver first: a result that it wrote just before it ended must not be missed.
        status = self._runner.status(job.id, job.fence) if started else None
        awaits_start = job.state is State.RECOVERING or (status is not None and status.driver is Driver.ABSENT)
        return View(
            job=job,
            driver=status.driver if status else Driver.ABSENT,
            driver_message=status.message if status else None,
            result=_read_result(run, job.fence) if started else None,
            beats=run.read_heartbeats(job.fence) if started else {},
            stop_requested=started and run.stop_requested(job.fence),
            leaked=bool(awaits_start and self._leaked_fences(job)),
            now=self._clock(),
        )

    def _leaked_fences(self, job: Job) -> list[int]:
        return [fence for owner, fence in self._runner.alive() if owner == job.id and fence < job.fence]

    def _act(self, job: Job, decision: Decision, lease: int) -> None:
        match decision:
            case Nothing():
                return
            case Move(to, reason, first_cause):
                self._store.move(job, to, reason=reason, first_cause=first_cause, lease=lease)
            case Begin(fence):
                self._begin(job, fence, lease)
            case Submit():
                self._runner.submit(job.id, job.fence)
            case RequestStop():
                self._request_stop(job)
            case StopDriver():
                self._stop(job.id, job.fence)
            case StopLeaked():
                for fence in self._leaked_fences(job):
                    self._stop(job.id, fence)
            case _:
                assert_never(decision)
        log.info("%s (%s, attempt %d): %s", job.id, job.state, job.fence, decision)

    def _begin(self, job: Job, fence: int, lease: int) -> None:
        """Commit the attempt before it is started: at most one driver ever runs under one fence."""
        run = RunDir(self._storage, job.id)
        try:
            if job.parent is None:
                run.create(job.spec)
            else:
                begin_from(RunDir(self._storage, job.parent), run, job.spec)
            write_json(run.estimate, job.estimate)
        except NothingToGoOnFrom as error:  # what was there when it was submitted has been taken away by hand
            self._store.move(job, State.FAILED, reason=Reason("no_checkpoint", str(error)), lease=lease)
            return
        except (StorageError, OSError) as error:
            self._store.move(job, State.FAILED, reason=Reason("storage", str(error)), lease=lease)
            return
        started = self._store.move(
            job, State.STARTING, fence=fence, submission_id=submission_id(job.id, fence), lease=lease
        )
        self._runner.submit(started.id, started.fence)

    def _request_stop(self, job: Job) -> None:
        try:
            RunDir(self._storage, job.id).request_stop(job.fence)
        except StorageError as error:  # a full disk must not keep a job alive: the driver is stopped in time anyway
            log.warning("%s: %s", job.id, error)
            self._stop(job.id, job.fence)

    def _stop(self, job_id: str, fence: int) -> None:
        key, now = submission_id(job_id, fence), self._clock()
        if now - self._stopped_at.get(key, float("-inf")) >= STOP_REPEAT_S:
            self._stopped_at[key] = now
            self._runner.stop(job_id, fence)

    # ---- what should not be there

    def _stop_drivers_of_finished_jobs(self) -> None:
        """A manager that was paused may have started a driver for a job that another had ended meanwhile."""
        try:
            for job_id, fence in self._runner.alive():
                job = self._store.get(job_id)
                if job is not None and job.ended_at is not None and self._clock() - job.ended_at > EXIT_GRACE_S:
                    log.warning("%s is %s, yet its driver %d lives; stopping it", job_id, job.state, fence)
                    self._stop(job_id, fence)
        except RunnerError as error:
            log.warning("%s; trying again", error)


def _read_result(run: RunDir, fence: int) -> dict[str, Any] | None:
    try:
        return read_json(run.result(fence))
    except ValueError as error:  # written whole or not at all, so somebody else's hand was in it
        return {"outcome": "failed", "reason": {"code": "bad_result", "message": f"result.json is no JSON: {error}"}}
