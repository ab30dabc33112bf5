"""Whether the disks that jobs fill have room for another one.

Checkpoints that cannot be written end a job; so no job begins on a disk that is nearly full, while those that run have
what is left.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from codistill.run_dir import StorageError

STANDARD_PERCENT = 85.0
"""Ray itself stops writing to a disk at 95 %."""


class DiskFull(StorageError):
    """No further job is taken until there is room; those that run go on."""


def used_percent(path: Path) -> float | None:
    """Of the file system that `path` lies on, as `df` tells it; None when it cannot be asked."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    used = found.f_blocks - found.f_bfree
    usable = used + found.f_bavail  # without what is kept for root
    return 100.0 * used / usable if usable else None


@dataclass(frozen=True)
class Disks:
    """Directories that are watched, by what they are for, and how full their disks may be."""

    places: Mapping[str, Path] = field(default_factory=dict[str, Path])
    most_percent: float = STANDARD_PERCENT
    measure: Callable[[Path], float | None] = used_percent

    def used(self) -> dict[str, float]:
        """Percent of each, where it is known."""
        found = {name: self.measure(path) for name, path in self.places.items()}
        return {name: percent for name, percent in found.items() if percent is not None}

    def shortage(self) -> str | None:
        """None when there is room, else one sentence that says where there is not."""
        for name, percent in self.used().items():
            if percent >= self.most_percent:
                return (
                    f"the disk of {name} ({self.places[name]}) is {percent:.1f} % full, and from"
                    f" {self.most_percent:g} % on no job begins; make room: codistill prune"
                )
        return None

    def check(self) -> None:
        """Raise `DiskFull` unless there is room."""
        if (short := self.shortage()) is not None:
            raise DiskFull(short)
