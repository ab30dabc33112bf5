"""How an attempt ended, out of how its replicas ended: the content of `result.json`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from codistill.price import taken

RESULT_FORMAT_VERSION = 1


@dataclass(frozen=True)
class ReplicaOutcome:
    """How one replica ended."""

    outcome: str
    """`succeeded`, `failed` or `cancelled`."""
    steps: int = 0
    incarnations: int = 0
    error: str | None = None
    seconds: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    step_s: float | None = None
    """Seconds per step, evaluations and checkpoints included, since the replica was last started."""
    memory_bytes: int | None = None
    """The most that tensors of its first rank held at once; None on the CPU, where nobody counts them."""
    process_bytes: int | None = None
    """The most that the process of its first rank was in memory with, framework and data included."""
    hardware: str | None = None
    """What it trained on: a model of GPU or CPU."""


@dataclass(frozen=True)
class Reason:
    """The first cause of an attempt that did not simply succeed."""

    code: str
    message: str
    replica: str | None = None


def attempt_result(
    job_id: str,
    fence: int,
    replicas: Mapping[str, ReplicaOutcome],
    *,
    started_at: float,
    ended_at: float,
    reason: Reason | None = None,
    estimate: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The value of `result.json`.

    Cancelled when any replica was; failed when all failed, or when `reason` says that the attempt itself did;
    succeeded otherwise, degraded when a replica is missing from the success. `estimate` is what was told before.
    """
    outcomes = [replica.outcome for replica in replicas.values()]
    failed = {name: replica for name, replica in replicas.items() if replica.outcome == "failed"}
    if reason is None and failed:
        name, first = next(iter(failed.items()))
        reason = Reason("replica_failed", f"{name} failed: {first.error}", name)
        given = False
    else:
        given = reason is not None
    if "cancelled" in outcomes and not given:
        outcome = "cancelled"
    elif given or (failed and len(failed) == len(outcomes)):
        outcome = "failed"
    else:
        outcome = "succeeded"
    entries = {name: asdict(replica) for name, replica in replicas.items()}
    return {
        "format_version": RESULT_FORMAT_VERSION,
        "job_id": job_id,
        "fence": fence,
        "outcome": outcome,
        "degraded": outcome == "succeeded" and bool(failed),
        "reason": None if reason is None else asdict(reason),
        "started_at": started_at,
        "ended_at": ended_at,
        "replicas": entries,
        "took": taken(entries, ended_at - started_at),
        "estimate": estimate,
    }
