"""The exchange directory: one actor per attempt that knows who has announced what, and how far everybody is.

It holds references, never arrays: a reference keeps the publisher's object alive, and costs the directory nothing.
All it knows comes back by itself when it is restarted, with the next poll of every replica.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import ray

from codistill.exchange.snapshot import Header, SnapshotId

ACTOR_NAME = "exchange-directory"


Known = tuple[SnapshotId, bool]
"""A snapshot, and whether it is an object (else a file): one that becomes a file is news."""


@dataclass(frozen=True)
class Entry:
    """A snapshot that has been announced, and where its arrays are."""

    header: Header
    refs: list[ray.ObjectRef[Any]]
    """The one object that holds the arrays (in a list, so that Ray passes the reference on and not the arrays);
    empty when the arrays are a file in the publisher's exchange directory."""

    @property
    def known(self) -> Known:
        return self.header.id, bool(self.refs)


@dataclass(frozen=True)
class News:
    """The answer to a poll. References travel once to each reader, who can then fetch without asking again."""

    steps: dict[int, int]
    """Updates each replica had completed when it last said so."""
    listed: frozenset[Known]
    """All that may be had now."""
    entries: list[Entry]
    """Of these, what the asker does not know."""


@dataclass
class Directory:
    """What is known of all replicas of one attempt."""

    steps: dict[int, int] = field(default_factory=dict[int, int])
    entries: dict[int, dict[SnapshotId, Entry]] = field(default_factory=dict[int, dict[SnapshotId, Entry]])
    handles: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])

    def announce(self, replica: int, announced: list[Entry], keep: int) -> None:
        """Add to what `replica` offers, of which the newest `keep` stay. Doing so again changes nothing."""
        known = self.entries.get(replica, {}) | {entry.header.id: entry for entry in announced}
        newest = sorted(known)[-keep:]
        self.entries[replica] = {snapshot: known[snapshot] for snapshot in newest}

    def poll(self, replica: int, step: int, known: frozenset[Known]) -> News:
        """Note that `replica` has completed `step` updates; answer what is new to somebody who knows `known`."""
        self.steps[replica] = step
        all_entries = [entry for held in self.entries.values() for entry in held.values()]
        return News(
            steps=self.steps,
            listed=frozenset(entry.known for entry in all_entries),
            entries=[entry for entry in all_entries if entry.known not in known],
        )

    def locate(self, snapshot: SnapshotId) -> Entry | None:
        """Where a snapshot's arrays are; None when it was never announced or has been dropped."""
        return self.entries.get(snapshot.replica, {}).get(snapshot)

    def register(self, replica: str, handles: dict[str, bytes]) -> None:
        """Remember pickled handles by which the driver can stop a replica's run."""
        self.handles.setdefault(replica, {}).update(handles)

    def registered(self, replica: str) -> dict[str, bytes]:
        return self.handles.get(replica, {})

    def pid(self) -> int:
        return os.getpid()


def namespace_of(job_id: str, fence: int) -> str:
    """The Ray namespace of an attempt: a driver that was given up cannot meet its successor's directory."""
    return f"codistill-{job_id}-{fence}"


def start_directory(namespace: str) -> Any:
    """Start the actor and return its handle. It dies with the process that calls this, and runs on the same node: left
    to itself, Ray puts what needs no CPU on any, such as one that comes and goes with a service."""
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    options = {"name": ACTOR_NAME, "namespace": namespace, "num_cpus": 0, "max_restarts": -1, "label_selector": here}
    return ray.remote(Directory).options(**options).remote()


def find_directory(namespace: str) -> Any:
    """The handle of a running directory; raises `ValueError` when there is none."""
    return ray.get_actor(ACTOR_NAME, namespace=namespace)
