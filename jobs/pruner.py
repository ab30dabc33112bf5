"""The part of a manager that deletes by itself what ended long ago, where the operator asked for that."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from codistill.run_dir import RunDir
from jobs.callers import Caller, Scope
from jobs.retention import DAY_S, prunable
from jobs.store import Store
from jobs.store_terms import LostRace, StillNeeded

log = logging.getLogger("codistill.manager")

LOOK_INTERVAL_S = 600.0
SERVICE = Caller("service", Scope.ADMIN)
"""Whom the audit names."""


class Pruner:
    """Keeps a list of what may go, and takes one job off it in each round: many directories take long to delete, and
    jobs that run must not wait for that."""

    def __init__(self, store: Store, storage: Path, keep_days: float, clock: Callable[[], float]) -> None:
        self._store, self._storage, self._keep_s, self._clock = store, storage, keep_days * DAY_S, clock
        self._ids: list[str] = []
        self._look_at = float("-inf")

    def step(self) -> None:
        """Delete one job at most. Raises `StoreError`."""
        now = self._clock()
        if not self._ids and now >= self._look_at:
            self._ids = prunable(self._store.pasts(), now=now, older_than_s=self._keep_s)[::-1]
            self._look_at = now + LOOK_INTERVAL_S
        if self._ids:
            self._delete(self._ids.pop())

    def _delete(self, job_id: str) -> None:
        job = self._store.get(job_id)
        if job is None:
            return
        try:
            self._store.delete(job, by=SERVICE, action="retention")
        except (LostRace, StillNeeded) as error:
            log.info("%s stays for now: %s", job_id, error)
            return
        root = RunDir(self._storage, job_id).root
        shutil.rmtree(root, ignore_errors=True)
        if root.exists():
            log.warning("%s is deleted, but not all of its directory %s could be; remove that by hand", job_id, root)
        else:
            log.info("%s is deleted: it ended %.0f days ago or more", job_id, self._keep_s / DAY_S)
