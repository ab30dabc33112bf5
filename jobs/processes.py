"""Which processes belong to something we started, and how they are ended: by process id, never by name.

Linux only: it reads /proc. A process belongs when it carries our mark in its environment, lives in a session where a
marked process lives, or descends from one that belongs. The mark survives what the other two do not (a parent's death)
and the other two find processes that overwrite their environment (Ray's, with their titles).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "CODISTILL_HEAD_ID"
POLL_S = 0.05


@dataclass(frozen=True)
class Process:
    """One living process."""

    pid: int
    parent: int
    session: int
    command: str
    marked: bool


def snapshot(mark: str) -> list[Process]:
    """Every process that we may look at; `marked` when its environment carries `mark`."""
    found = [
        _read(Path(entry.path), f"{MARK}={mark}".encode()) for entry in os.scandir("/proc") if entry.name.isdigit()
    ]
    return [process for process in found if process is not None]


def _read(directory: Path, mark: bytes) -> Process | None:
    try:
        # The name in brackets may itself hold brackets and blanks: what follows the last one is plain.
        state, parent, _group, session = (directory / "stat").read_text().rpartition(")")[2].split()[:4]
        command = (directory / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    except (OSError, ValueError):  # it ended meanwhile
        return None
    if state in "ZX":
        return None
    marked = False
    with suppress(OSError):
        marked = mark in (directory / "environ").read_bytes().split(b"\0")
    return Process(int(directory.name), int(parent), int(session), command, marked)


def belonging(processes: Iterable[Process]) -> list[Process]:
    """Of a snapshot, those that belong. Pure. This process itself never does."""
    everything = {process.pid: process for process in processes}
    sessions = {process.session for process in everything.values() if process.marked}
    ours = {pid for pid, process in everything.items() if process.marked or process.session in sessions}
    while True:
        more = {pid for pid, process in everything.items() if process.parent in ours} - ours
        if not more:
            return [everything[pid] for pid in sorted(ours) if pid != os.getpid()]
        ours |= more


def end(mark: str, *, first: Callable[[Process], bool], patience_s: float = 5.0) -> int:
    """End everything that belongs to `mark`: SIGTERM to those that are `first`, then to the rest, SIGKILL to who is
    left after `patience_s`. Returns how many there were.

    Looks again after each round: processes may start others while they end.
    """
    ended: set[int] = set()
    ended |= _signal([p for p in belonging(snapshot(mark)) if first(p)], signal.SIGTERM)
    _wait_gone(mark, patience_s / 2, first)
    ended |= _signal(belonging(snapshot(mark)), signal.SIGTERM)
    _wait_gone(mark, patience_s, lambda _process: True)
    give_up = time.monotonic() + patience_s
    while (left := belonging(snapshot(mark))) and time.monotonic() < give_up:
        ended |= _signal(left, signal.SIGKILL)
        time.sleep(POLL_S)
    return len(ended)


def _signal(processes: Iterable[Process], number: signal.Signals) -> set[int]:
    reached: set[int] = set()
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
            reached.add(process.pid)
    return reached


def _wait_gone(mark: str, timeout_s: float, which: Callable[[Process], bool]) -> None:
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up and any(which(process) for process in belonging(snapshot(mark))):
        time.sleep(POLL_S)
