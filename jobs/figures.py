"""What the service tells Prometheus about jobs, queue and manager: read from the store at every scrape.

Nothing is counted in memory, so that every copy of the service tells the same, and a new one goes on where the old one
ended. Ids of jobs stand only on figures of jobs that run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from codistill.progress import OVER
from jobs.status import State
from jobs.usage import Usage

WAITS_OVER_S = 3600.0
"""How long ago an admission may be to count for the time in the queue."""
QUANTILES = (0.5, 0.95)


@dataclass(frozen=True)
class Facts:
    """What the store knows, at one moment."""

    by_state: Mapping[State, int] = field(default_factory=dict[State, int])
    waiting_by_owner: Mapping[str, int] = field(default_factory=dict[str, int])
    oldest_wait_s: float = 0.0
    """Of the job that has waited longest."""
    waits_s: Sequence[float] = ()
    """In the queue, of those admitted of late."""
    ended_by_cause: Mapping[str, int] = field(default_factory=dict[str, int])
    """Attempts that ended, by the code of the reason."""
    lease_held: bool = False
    lease_fence: int = 0
    round_age_s: float | None = None
    """Since a manager last looked at all jobs."""
    usage: Sequence[Usage] = ()
    """Of each owner."""


@dataclass(frozen=True)
class Room:
    """CPUs and GPUs of the cluster, and what jobs hold of them."""

    nodes: int
    cpus: float
    gpus: float
    reserved_cpus: float
    reserved_gpus: float
    disks_percent: Mapping[str, float] = field(default_factory=dict[str, float])
    """How full those are that jobs fill, by what they are for."""
    disk_full: bool = False
    """Too full for another job to begin."""


Family = GaugeMetricFamily


def service_figures(facts: Facts, room: Room, version: str) -> list[Metric]:
    """Of the service as a whole."""
    info = Family("codistill_build_info", "Version of the service.", labels=["version"])
    info.add_metric([version], 1)
    jobs = Family("codistill_jobs", "Jobs in the store, by state.", labels=["state"])
    for state in State:
        jobs.add_metric([state.value], facts.by_state.get(state, 0))
    depth = Family("codistill_queue_depth", "Jobs that wait, by owner.", labels=["owner"])
    for owner, count in sorted(facts.waiting_by_owner.items()):
        depth.add_metric([owner], count)
    waits = Family(
        "codistill_queue_wait_seconds", "Time in the queue of jobs admitted within the last hour.", labels=["quantile"]
    )
    for quantile in QUANTILES if facts.waits_s else ():
        waits.add_metric([f"{quantile:g}"], nearest_rank(facts.waits_s, quantile))
    causes = Family("codistill_attempts_ended", "Attempts that ended, by cause.", labels=["cause"])
    for cause, count in sorted(facts.ended_by_cause.items()):
        causes.add_metric([cause], count)
    cpu_s = CounterMetricFamily(
        "codistill_reserved_cpu_seconds", "CPU-seconds that jobs have reserved, by owner.", labels=["owner"]
    )
    gpu_s = CounterMetricFamily(
        "codistill_reserved_gpu_seconds", "GPU-seconds that jobs have reserved, by owner.", labels=["owner"]
    )
    stored = Family("codistill_stored_bytes", "What jobs have left in the storage, by owner.", labels=["owner"])
    for usage in facts.usage:
        cpu_s.add_metric([usage.owner], usage.cpu_s)
        gpu_s.add_metric([usage.owner], usage.gpu_s)
        stored.add_metric([usage.owner], usage.stored_bytes)
    found: list[Metric] = [
        info,
        jobs,
        depth,
        Family("codistill_queue_oldest_seconds", "Since the oldest waiting job was submitted.", facts.oldest_wait_s),
        waits,
        causes,
        cpu_s,
        gpu_s,
        stored,
        Family("codistill_manager_lease_held", "1 while some manager holds the lease.", float(facts.lease_held)),
        Family("codistill_manager_fence", "Of the lease; it rises when another manager takes over.", facts.lease_fence),
    ]
    if facts.round_age_s is not None:
        help_text = "Since a manager last looked at all jobs."
        found.append(Family("codistill_manager_round_age_seconds", help_text, facts.round_age_s))
    return [*found, *_room_figures(room)]


def _room_figures(room: Room) -> list[Metric]:
    nodes = Family("codistill_cluster_nodes", "Living nodes of the Ray cluster that take jobs.", room.nodes)
    cpus = Family("codistill_cluster_cpus", "CPUs of the cluster, and those reserved by jobs.", labels=["kind"])
    gpus = Family("codistill_cluster_gpus", "GPUs of the cluster, and those reserved by jobs.", labels=["kind"])
    cpus.add_metric(["total"], room.cpus)
    cpus.add_metric(["reserved"], room.reserved_cpus)
    gpus.add_metric(["total"], room.gpus)
    gpus.add_metric(["reserved"], room.reserved_gpus)
    disks = Family("codistill_disk_used_ratio", "How full a disk is that jobs fill.", labels=["place"])
    for place, percent in room.disks_percent.items():
        disks.add_metric([place], percent / 100)
    full = Family("codistill_disk_full", "1 while a disk is too full for another job to begin.", float(room.disk_full))
    return [nodes, cpus, gpus, disks, full]


def replica_figures(beats: Mapping[str, Mapping[str, Mapping[str, Any]]], now: float) -> list[Family]:
    """Of jobs that run: `beats` maps job id and replica to the newest heartbeat."""
    who = ["job_id", "replica"]
    step = Family("codistill_replica_step", "Step of a replica.", labels=who)
    age = Family("codistill_replica_heartbeat_age_seconds", "Since a replica was last heard of.", labels=who)
    sent = Family("codistill_replica_sent_bytes", "Sent by a replica in this incarnation.", labels=who)
    received = Family("codistill_replica_received_bytes", "Received by a replica in this incarnation.", labels=who)
    offset = Family(
        "codistill_replica_teacher_offset_steps",
        "Own steps between a replica and the copy of a teacher that it uses.",
        labels=[*who, "teacher"],
    )
    for job_id, replicas in sorted(beats.items()):
        for replica, beat in sorted(replicas.items()):
            labels = [job_id, replica]
            step.add_metric(labels, float(beat.get("step") or 0))
            if beat.get("state") not in OVER:  # who is done is silent while others train
                age.add_metric(labels, max(0.0, now - float(beat["time"])))
            sent.add_metric(labels, float(beat.get("bytes_sent") or 0))
            received.add_metric(labels, float(beat.get("bytes_received") or 0))
            for teacher in beat.get("teachers") or ():
                offset.add_metric([*labels, str(teacher["teacher"])], float(teacher["offset_steps"]))
    return [step, age, sent, received, offset]


def nearest_rank(values: Sequence[float], quantile: float) -> float:
    """The smallest value that at least `quantile` of all values do not exceed."""
    ordered = sorted(values)
    rank = -(-quantile * len(ordered) // 1)
    return ordered[max(0, int(rank) - 1)]
