"""What the driver decides: pure functions of what it has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from codistill.capacity import Node, demand_of, shortage
from codistill.outcome import Reason, ReplicaOutcome
from codistill.spec import JobSpec, MemoryTransport

ABORT_AFTER_S = 20.0
"""Time for a last checkpoint after a stop was asked for."""
KILL_AFTER_S = 25.0
LEAVE_AFTER_S = 28.0
"""Ray gives a stopped driver 30 s in our jobs; `result.json` is written before that."""
HANG_AFTER_S = 60.0


# ---------------------------------------------------------------- may it start?

MEMORY_REFUSED = (
    "exchange.transport 'memory' joins replicas of one process, and on Ray each has its own;"
    " use kind = 'auto', 'object_store' or 'files'"
)


def refusal(spec: JobSpec, nodes: Sequence[Node], memory_bytes: int | None = None) -> Reason | None:
    """Why this job, of which each rank takes so much memory, can never run on these nodes; None when it can."""
    if isinstance(spec.exchange.transport, MemoryTransport):
        return Reason("spec", MEMORY_REFUSED)
    short = shortage(demand_of(spec, memory_bytes), nodes)
    return None if short is None else Reason("no_capacity", short)


# ---------------------------------------------------------------- does it stop when it is asked to?


Rung = Literal["wait", "abort", "kill", "leave"]


def rung(since_stop_s: float, *, hurried: bool) -> Rung:
    """How hard to press replicas that still run this long after a stop was asked for.

    `hurried` (a second signal) skips the wait for last checkpoints.
    """
    since_stop_s += ABORT_AFTER_S if hurried else 0.0
    if since_stop_s >= LEAVE_AFTER_S:
        return "leave"
    if since_stop_s >= KILL_AFTER_S:
        return "kill"
    return "abort" if since_stop_s >= ABORT_AFTER_S else "wait"


# ---------------------------------------------------------------- is it alive?


@dataclass
class LifeSign:
    """When a replica's heartbeat last changed, by the driver's own clock (the nodes' clocks may differ)."""

    ended_incarnation: int = -1
    """Beats of this incarnation and those before it are no sign of life."""
    beat_time: float | None = None
    changed_at: float = 0.0

    def observe(self, beat: Mapping[str, Any] | None, now: float) -> None:
        if beat is None or beat["incarnation"] <= self.ended_incarnation or beat["time"] == self.beat_time:
            return
        self.beat_time, self.changed_at = beat["time"], now

    def hangs(self, now: float, *, limit_s: float) -> bool:
        """Whether a process that has shown life has shown none for `limit_s`. (Before its first beat it may be waiting
        for room in the cluster.)"""
        return self.beat_time is not None and now - self.changed_at > limit_s


# ---------------------------------------------------------------- how did it end?


def outcome_from_beat(
    outcome: str, beat: Mapping[str, Any] | None, *, error: str | None, seconds: float
) -> ReplicaOutcome:
    """The outcome of a replica that returned nothing, out of its last heartbeat."""
    if beat is None:
        return ReplicaOutcome(outcome, error=error, seconds=seconds)
    metrics: Mapping[str, float | None] = beat["metrics"]
    return ReplicaOutcome(
        outcome,
        steps=beat["step"],
        incarnations=beat["incarnation"] + 1,
        error=error,
        seconds=seconds,
        bytes_sent=beat["bytes_sent"],
        bytes_received=beat["bytes_received"],
        metrics={n: v for n, v in metrics.items() if n.startswith("eval/") and v is not None},
    )
