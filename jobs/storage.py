"""Whether jobs can be written to a storage."""

from __future__ import annotations

import os
from pathlib import Path

from codistill.run_dir import RunDir, StorageError

MIN_FREE_BYTES = 64 << 20
"""Below this, storage counts as full: a job started now would end in the middle of a checkpoint."""


def check_storage(storage: Path) -> None:
    """Raise `StorageError` unless jobs can be written there."""
    if not storage.is_dir():
        raise StorageError(f"storage {storage} does not exist; create it, or name another directory")
    if not os.access(storage, os.W_OK | os.X_OK):
        raise StorageError(f"storage {storage} is not writable; check its owner and mode")
    free = RunDir(storage, "any").free_bytes()
    if free < MIN_FREE_BYTES:
        raise StorageError(
            f"storage {storage} is full: {free / 2**20:.0f} MiB free, at least {MIN_FREE_BYTES >> 20} MiB are"
            " needed; make room: codistill prune"
        )
