"""The part of a manager that measures what jobs leave in the storage, one directory in a round: they may hold many
files, and jobs that run must not wait for that."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from codistill.run_dir import RunDir
from jobs.store import Store

REST_S = 5.0
"""After a round that found nothing to measure."""
AGAIN_S = 60.0
"""After which a job that still runs is measured again; one that has ended is measured once more."""


class Measurer:
    """Keeps the sizes in the store, where quotas and usage read them."""

    def __init__(self, store: Store, storage: Path, clock: Callable[[], float]) -> None:
        self._store, self._storage, self._clock = store, storage, clock
        self._rests_until = float("-inf")

    def step(self) -> None:
        """Measure one job at most. Raises `StoreError`."""
        now = self._clock()
        if now < self._rests_until:
            return
        job_id = self._store.due_for_measuring(now - AGAIN_S)
        if job_id is None:
            self._rests_until = now + REST_S
        else:
            self._store.measured(job_id, bytes_under(RunDir(self._storage, job_id).root))


def bytes_under(root: Path) -> int:
    """Of all files under `root`, links not followed; what vanishes meanwhile or cannot be read is not counted."""
    return sum(_sizes(root))


def _sizes(directory: Path) -> Iterator[int]:
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _sizes(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    yield entry.stat(follow_symlinks=False).st_size
    except OSError:
        return
