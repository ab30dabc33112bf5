"""What a mailbox is told, what it counts, and how it fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from codistill.exchange.clock import PublishRule
from codistill.exchange.snapshot import SnapshotId


class StopRequested(Exception):
    """The replica was asked to stop while it waited for a peer."""


class SnapshotRefused(RuntimeError):
    """In lockstep, this replica's own snapshot does not pass the gate."""


class PeerTimeout(RuntimeError):
    """In lockstep, a peer's exact version did not come in time."""


@dataclass
class Counters:
    """What the exchange did so far; missing is counted, never swallowed."""

    bytes_sent: int = 0
    """Of snapshots once each, whoever fetches them; of gradients by all ranks."""
    bytes_received: int = 0
    """By all ranks, each of which fetches for itself."""
    rejected: int = 0
    """Snapshots that did not pass the gate, own and peers'."""
    unavailable: int = 0
    """Fetches that came back empty: a dead owner, a dropped snapshot, a time-out."""
    skipped: int = 0
    """Own snapshots replaced by a newer one before they could be announced."""
    gradient_bytes: int = 0
    """How much of what was sent, and received, are gradients among this replica's own ranks."""
    missed: int = 0
    """Snapshots of peers that were never used, where each counts: gone before they could be taken, or refused."""
    predictions_found: int = 0
    """Look-ups of a sample among what a peer has said that found something, on this rank."""
    predictions_missed: int = 0
    """Those that found nothing, or too old."""
    quarantined: int = 0
    """Replicas in quarantine now, this one included."""
    readmitted: int = 0
    """Times that one came out of quarantine."""

    def go_on_from(self, counted: Mapping[str, int]) -> None:
        """Take up what an earlier incarnation counted (`vars` of its counters); it may have known others in quarantine
        than this one, which has looked at nobody yet."""
        vars(self).update(vars(Counters(**counted)), quarantined=0)

    def note_quarantine(self, before: bool, after: bool) -> None:
        """Somebody was in quarantine or not, and now is or is not."""
        self.quarantined += after - before
        self.readmitted += before and not after

    def averaged_gradients(self, num_bytes: int) -> None:
        """All ranks together have sent, and received, `num_bytes` of gradients."""
        self.bytes_sent += num_bytes
        self.bytes_received += num_bytes
        self.gradient_bytes += num_bytes

    def as_metrics(self) -> dict[str, float]:
        """By name; what concerns predictions under `predictions/`, once one has been asked for."""
        values = {f"exchange/{name}": float(value) for name, value in vars(self).items()}
        found, missed = (values.pop(f"exchange/predictions_{name}") for name in ("found", "missed"))
        return values if found + missed == 0 else values | {"predictions/found": found, "predictions/missed": missed}


@dataclass(frozen=True)
class MailboxSettings:
    """How a mailbox behaves."""

    me: SnapshotId
    """This replica, fence and incarnation (the version is not looked at)."""
    teachers: tuple[int, ...]
    """All that it ever learns from."""
    rule: PublishRule
    mode: Literal["async", "lockstep"]
    threaded: bool
    max_lag_steps: int | None = None
    max_offset_steps: int | None = None
    keep_in: Path | None = None
    """Where what is announced is also kept."""
    timeout_s: float = 120.0
    teachers_at: Callable[[int], tuple[int, ...]] | None = None
    """Of an exchange, by its number, those of `teachers` that it is with; all of them, always, when None."""

    def hears(self, lag_steps: int | None, offset_steps: int) -> bool:
        """Whether a snapshot of this age may teach. A lag that is not known passes."""
        if self.max_lag_steps is not None and lag_steps is not None and lag_steps > self.max_lag_steps:
            return False
        return self.max_offset_steps is None or offset_steps <= self.max_offset_steps

    @property
    def in_turns(self) -> bool:
        """Whether its teachers change from exchange to exchange."""
        return len(self.teachers_in(0)) < len(self.teachers)

    def teachers_in(self, step: int) -> tuple[int, ...]:
        """Whom it learns from in step `step`."""
        return self.teachers if self.teachers_at is None else self.teachers_at(self.rule.exchange(step))
