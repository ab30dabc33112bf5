"""One service from a home at a time, and where it serves from: what holds the lock says so in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from jobs.errors import HeadError
from jobs.head import Head, service_dir

OWN_HEAD, NO_CLUSTER = "", "-"


@dataclass(frozen=True)
class Holder:
    """The process that holds the lock."""

    pid: int
    cluster: str
    """Address; or OWN_HEAD for the head that its home remembers, NO_CLUSTER for what is no service."""

    def serves_from(self, head: Head) -> bool:
        return self.cluster in (OWN_HEAD, head.address)


@contextmanager
def only_one(home: Path, cluster: str) -> Generator[None]:
    """Held while a service runs from `home`; the kernel lets go when its process dies. Raises `HeadError`."""
    with (service_dir(home) / "lock").open("a+") as file:
        if not _try_lock(file):
            raise HeadError(f"a service from {home} is running already; end it first, or set CODISTILL_HOME")
        file.truncate(0)
        file.write(f"{os.getpid()}\n{cluster}")
        file.flush()
        yield


def holder(home: Path) -> Holder | None:
    """Who is in `only_one` now."""
    path = home / "service" / "lock"
    if not path.exists():
        return None
    with path.open("r+") as file:
        if _try_lock(file):
            return None
        pid, _, cluster = file.read().partition("\n")
        return Holder(int(pid), cluster)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
