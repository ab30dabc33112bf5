"""What a replica holds of one peer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from codistill.exchange.gate import Gate
from codistill.exchange.snapshot import Arrays, Header, SnapshotId
from codistill.spec import replica_name

HELD_BY_RANKS = 4
"""Snapshots of a peer that each of several ranks holds: the one in use, and newer ones that not all have yet."""


@dataclass(frozen=True)
class Held:
    """A snapshot that teaches in this step."""

    header: Header
    arrays: Arrays
    lag_steps: int | None
    """The peer's current step less the version; None while the peer's step is unknown."""
    offset_steps: int
    """Own step less the version; negative when the peer runs ahead."""
    is_new: bool
    """Whether this is the first step with it."""
    quarantined: bool = False
    """Whether what the peer showed since was refused, and it has not been readmitted."""

    def as_json(self) -> dict[str, Any]:
        who = self.header.id
        return {
            "teacher": replica_name(who.replica),
            "fence": who.fence,
            "incarnation": who.incarnation,
            "version": who.version,
            "lag_steps": self.lag_steps,
            "offset_steps": self.offset_steps,
            "quarantined": self.quarantined,
        }


@dataclass
class Shelf:
    """The snapshots of one peer that have passed the gate, oldest first."""

    gate: Gate
    size: int = 1
    every: bool = False
    """Whether each snapshot counts, or the newest alone."""
    held: list[tuple[Header, Arrays]] = field(default_factory=list[tuple[Header, Arrays]])
    shown: SnapshotId | None = None
    """The one in use."""
    taken_in: int | None = None
    """The exchange in which a snapshot was last put here."""
    refused: set[SnapshotId] = field(default_factory=set[SnapshotId])
    wanted: frozenset[SnapshotId] = frozenset()
    """On ranks other than the first: what the first holds, from which this one should fetch."""

    @property
    def newest(self) -> SnapshotId | None:
        return self.held[-1][0].id if self.held else None

    def clear(self) -> None:
        """Let go of all; what the gate has learned of the peer stays."""
        self.held.clear()
        self.shown = None
        self.wanted = frozenset()

    def ids(self) -> list[SnapshotId]:
        """As many as ranks tell each other of; the oldest, where each counts."""
        return [header.id for header, _ in self.held[:HELD_BY_RANKS]]

    def put(self, header: Header, arrays: Arrays) -> None:
        """Hold one more. What is too many goes, oldest first, but not the one in use while there is another."""
        self.held = sorted([*self.held, (header, arrays)], key=lambda entry: entry[0].id)
        while len(self.held) > self.size:
            oldest = 1 if self.size > 1 and self.held[0][0].id == self.shown else 0
            del self.held[oldest]

    def use(self, chosen: SnapshotId) -> list[tuple[Header, Arrays]]:
        """Let go of what is older than `chosen`, and return it; where each counts, with all before it that were not in
        use yet, oldest first."""
        passed = [entry for entry in self.held if entry[0].id <= chosen]
        self.held = [entry for entry in self.held if entry[0].id >= chosen]
        fresh = [entry for entry in passed if self.shown is None or entry[0].id > self.shown]
        return fresh if self.every and fresh else passed[-1:]
