"""Snapshots through Ray's object store: one copy to publish, none to read on the same node.

The publishing worker owns its snapshots, so they die with it, except where somebody still maps them; every such loss
reads as "no new teacher". A replica that ends well leaves its last snapshot as a file, which outlives it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OwnerDiedError, RayActorError, RayError

from cluster.directory import Entry, Known, News, find_directory
from codistill.exchange.snapshot import Array, Arrays, Header, SnapshotId
from codistill.exchange.transport import (
    PeerReport,
    SnapshotUnavailable,
    map_safetensors,
    write_safetensors,
)
from codistill.run_dir import RunDir
from codistill.spec import replica_name

log = logging.getLogger(f"codistill.{__name__}")  # a child of the logger whose records are the replica's log file

ASK_TIMEOUT_S = 5.0
"""Longest wait for an answer of the directory (1 to 3 ms when it is well)."""
FETCH_TIMEOUT_S = 3.0
SLOWEST_BYTES_PER_S = 50e6
"""A fetch may take FETCH_TIMEOUT_S, and longer for what a link of this speed would need."""


def read_only(arrays: dict[str, Array]) -> dict[str, Array]:
    """Forbid writing: arrays too small for shared memory, or not contiguous, come out of the store writable."""
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


class ObjectStoreTransport:
    """One replica's end of the exchange through the directory actor of `namespace`."""

    def __init__(self, run: RunDir, replica: int, *, namespace: str, keep: int) -> None:
        self._run, self._replica, self._keep = run, replica, keep
        self._directory = find_directory(namespace)
        self._mine: dict[SnapshotId, Entry] = {}
        self._known: dict[Known, Entry] = {}
        """What the directory listed at the last poll, with the references: to fetch is not to ask again."""
        self._reports: dict[int, PeerReport] = {}
        self.unanswered = 0
        """Questions to the directory that got no answer."""

    def publish(self, header: Header, arrays: Arrays) -> None:
        self._mine[header.id] = Entry(header, [ray.put(dict(arrays))])
        for old in sorted(self._mine)[: -self._keep]:
            del self._mine[old]
        self._tell_mine()

    def poll(self, step: int) -> Mapping[int, PeerReport]:
        try:
            news: News = self._ask("poll", self._replica, step, frozenset(self._known))
        except RayError:
            return self._reports
        known = self._known | {entry.known: entry for entry in news.entries}
        self._known = {key: known[key] for key in news.listed}  # references to what is no longer listed go here
        self._reports = {replica: PeerReport(step, ()) for replica, step in news.steps.items()}
        for entry in sorted(self._known.values(), key=lambda entry: entry.header.id):
            of = entry.header.id.replica
            report = self._reports.get(of, PeerReport(None, ()))
            self._reports[of] = PeerReport(report.step, (*report.announced, entry.header))
        if not {entry.known for entry in self._mine.values()} <= news.listed:
            self._tell_mine()  # the directory was away, or was restarted and knows nothing
        return self._reports

    def fetch(self, header: Header) -> Arrays:
        try:
            entry = self._entry(header.id)
            if entry is None:
                raise SnapshotUnavailable(f"{header.id} has been dropped by its publisher")
            if not entry.refs:
                return map_safetensors(self._file(header.id))
            limit_s = FETCH_TIMEOUT_S + header.num_bytes / SLOWEST_BYTES_PER_S
            return read_only(ray.get(entry.refs[0], timeout=limit_s))
        except (RayError, OSError, ValueError) as error:
            raise SnapshotUnavailable(f"{header.id} cannot be had: {reason(error)}") from error

    def _entry(self, snapshot: SnapshotId) -> Entry | None:
        for is_object in (False, True):  # a file outlives the object it is a copy of
            if (snapshot, is_object) in self._known:
                return self._known[snapshot, is_object]
        return self._ask("locate", snapshot)

    def close(self) -> None:
        """Leave what is announced as files, since the objects die with this process, and point the directory there."""
        if not self._mine:
            return
        for old in self._run.exchange(replica_name(self._replica)).glob("*.safetensors"):
            old.unlink()  # left by an earlier incarnation; who still maps it keeps it
        try:
            self._mine = {snapshot: self._as_file(entry) for snapshot, entry in self._mine.items()}
        except (OSError, RayError) as error:
            log.warning("the snapshots of replica %d end with this process: %s", self._replica, reason(error))
            return
        self._tell_mine()

    def _as_file(self, entry: Entry) -> Entry:
        path = self._file(entry.header.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        write_safetensors(temporary, ray.get(entry.refs[0], timeout=FETCH_TIMEOUT_S))
        temporary.replace(path)
        return Entry(entry.header, [])

    def _tell_mine(self) -> None:
        try:
            self._ask("announce", self._replica, list(self._mine.values()), self._keep)
        except RayError:
            log.info("the directory does not answer; what replica %d has will be announced again", self._replica)

    def _ask(self, method: str, *arguments: Any) -> Any:
        """The directory's answer; raises `RayError` when there is none within `ASK_TIMEOUT_S`."""
        started = time.monotonic()
        try:
            return ray.get(getattr(self._directory, method).remote(*arguments), timeout=ASK_TIMEOUT_S)
        except RayError:
            self.unanswered += 1
            log.warning("no answer to %r from the directory after %.1f s", method, time.monotonic() - started)
            raise

    def _file(self, snapshot: SnapshotId) -> Path:
        return self._run.exchange(replica_name(snapshot.replica)) / f"{snapshot.stem}.safetensors"


def reason(error: Exception) -> str:
    """Why something cannot be had, in a few words."""
    match error:
        case OwnerDiedError():
            return "its publisher has died"
        case GetTimeoutError():
            return "no answer in time"
        case RayActorError():
            return "the exchange directory is being restarted"
        case _:
            return str(error).splitlines()[0] if str(error) else type(error).__name__
