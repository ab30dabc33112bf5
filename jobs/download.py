"""A file on its way from a service to a disk: whole and as the service has it, or not there."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


class DownloadDiffers(RuntimeError):
    """What came is not what the service has."""


class Incoming:
    """What has come so far."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self._file.write(chunk)


@contextmanager
def incoming(artifact: Mapping[str, Any], target: Path) -> Generator[Incoming]:
    """Write one of a job's artifacts to `target`, which is there once the block has ended well. Raises
    `DownloadDiffers`, and `OSError`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.part")
    try:
        with unfinished.open("wb") as file:
            so_far = Incoming(file)
            yield so_far
        if artifact["sha256"] not in (None, so_far.digest.hexdigest()):
            raise DownloadDiffers(f"{artifact['name']} came with another SHA-256 than it has; try again")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
