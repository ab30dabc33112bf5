"""How snapshots get from one replica to another: the protocol, and the two transports that need no Ray.

A transport carries and remembers; it decides nothing.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from codistill.exchange.mapped_file import map_safetensors, write_safetensors
from codistill.exchange.snapshot import Array, Arrays, Header
from codistill.run_dir import RunDir, read_json, write_json
from codistill.spec import replica_name


class SnapshotUnavailable(RuntimeError):
    """A snapshot cannot be had: its owner died, it was dropped, or the answer took too long.

    Never an error of training: it means "no new teacher". The message says which snapshot and why.
    """


@dataclass(frozen=True)
class PeerReport:
    """What one replica is known to have done."""

    step: int | None
    """Updates it had completed when it last said so; None when it never did."""
    announced: tuple[Header, ...]
    """The snapshots of it that may still be had, in no order."""


class Transport(Protocol):
    """One replica's end of the exchange. All calls come from one thread."""

    def publish(self, header: Header, arrays: Arrays) -> None:
        """Let peers see a copy of `arrays`, which may change as soon as this returns, and drop this replica's own
        snapshots that are older than the last `keep`."""
        ...

    def poll(self, step: int) -> Mapping[int, PeerReport]:
        """Say that this replica has completed `step` updates; hear what is known of all replicas, by index."""
        ...

    def fetch(self, header: Header) -> Arrays:
        """The arrays of an announced snapshot, read-only, without a copy where the place allows it.

        Raises `SnapshotUnavailable`.
        """
        ...

    def close(self) -> None:
        """Let go of everything; announced snapshots stay for the peers where the place allows it."""
        ...


@dataclass(frozen=True)
class SnapshotScope:
    """Whose transport is wanted, and how many of its snapshots it is to keep."""

    run: RunDir
    fence: int
    incarnation: int
    index: int
    replicas: int
    keep: int


Connect = Callable[[SnapshotScope], Transport]


# ---------------------------------------------------------------- memory


@dataclass
class Hub:
    """What the replicas of one process share."""

    steps: dict[int, int] = field(default_factory=dict[int, int])
    snapshots: dict[int, list[tuple[Header, Arrays]]] = field(default_factory=dict[int, list[tuple[Header, Arrays]]])
    lock: threading.Lock = field(default_factory=threading.Lock)


class MemoryTransport:
    """Between replicas of one process."""

    def __init__(self, hub: Hub, replica: int, *, keep: int) -> None:
        self._hub, self._replica, self._keep = hub, replica, keep

    def publish(self, header: Header, arrays: Arrays) -> None:
        copies: dict[str, Array] = {}
        for name, array in arrays.items():
            copies[name] = array.copy()
            copies[name].flags.writeable = False
        with self._hub.lock:
            mine = self._hub.snapshots.setdefault(self._replica, [])
            mine.append((header, copies))
            mine.sort(key=lambda entry: entry[0].id)
            del mine[: -self._keep]

    def poll(self, step: int) -> Mapping[int, PeerReport]:
        with self._hub.lock:
            self._hub.steps[self._replica] = step
            return {
                replica: PeerReport(
                    self._hub.steps.get(replica), tuple(h for h, _ in self._hub.snapshots.get(replica, []))
                )
                for replica in self._hub.steps.keys() | self._hub.snapshots.keys()
            }

    def fetch(self, header: Header) -> Arrays:
        with self._hub.lock:
            for known, arrays in self._hub.snapshots.get(header.id.replica, []):
                if known.id == header.id:
                    return arrays
        raise SnapshotUnavailable(f"{header.id} has been dropped by its publisher")

    def close(self) -> None:
        pass


# ---------------------------------------------------------------- files


class FilesTransport:
    """Between processes that share a directory.

    A snapshot is one safetensors file, written under another name and renamed, then a small JSON header: the header is
    the commit. Readers map the file; a mapping outlives both the file's removal and its publisher's death. How far
    each replica is stands in eight bytes of its own.
    """

    def __init__(self, run: RunDir, replica: int, replicas: int, *, keep: int) -> None:
        self._run, self._replica, self._replicas, self._keep = run, replica, replicas, keep
        self._directory = run.exchange(replica_name(replica))
        self._directory.mkdir(parents=True, exist_ok=True)
        self._progress = self._directory / "step"

    def publish(self, header: Header, arrays: Arrays) -> None:
        unfinished = self._directory / f".{header.id.stem}.safetensors.tmp"
        write_safetensors(unfinished, arrays)
        unfinished.rename(self._directory / f"{header.id.stem}.safetensors")
        write_json(self._directory / f"{header.id.stem}.json", header.as_json(), durable=False)
        for old in sorted(self._headers(self._replica), key=lambda h: h.id)[: -self._keep]:
            (self._directory / f"{old.id.stem}.json").unlink(missing_ok=True)
            (self._directory / f"{old.id.stem}.safetensors").unlink(missing_ok=True)
        for left in self._directory.glob(".*.safetensors.tmp"):  # by an earlier incarnation that was killed
            left.unlink(missing_ok=True)

    def poll(self, step: int) -> Mapping[int, PeerReport]:
        # In place, eight bytes at once: a reader never finds it empty or half written.
        descriptor = os.open(self._progress, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, struct.pack("<q", step), 0)
        finally:
            os.close(descriptor)
        return {
            replica: PeerReport(self._step(replica), tuple(self._headers(replica))) for replica in range(self._replicas)
        }

    def fetch(self, header: Header) -> Arrays:
        path = self._run.exchange(replica_name(header.id.replica)) / f"{header.id.stem}.safetensors"
        try:
            return map_safetensors(path)
        except (OSError, ValueError) as error:
            raise SnapshotUnavailable(f"{header.id}: {error}") from error

    def close(self) -> None:
        pass

    def _step(self, replica: int) -> int | None:
        try:
            raw = (self._run.exchange(replica_name(replica)) / "step").read_bytes()
        except FileNotFoundError:
            return None
        return struct.unpack("<q", raw)[0] if len(raw) == 8 else None

    def _headers(self, replica: int) -> list[Header]:
        found = [read_json(path) for path in self._run.exchange(replica_name(replica)).glob("*.json")]
        return [Header.from_json(value) for value in found if value is not None]


def connect_files(scope: SnapshotScope) -> FilesTransport:
    """A replica's end of the exchange through files in its run directory."""
    return FilesTransport(scope.run, scope.index, scope.replicas, keep=scope.keep)
