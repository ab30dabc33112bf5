"""Who is next: pure functions of the jobs that wait, those that hold a reservation, and the nodes."""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from codistill.capacity import Demand, Node, remaining, shortage
from jobs.job import Reason


@dataclass(frozen=True)
class Standing:
    """What the order of the queue depends on, of one job: little, since thousands may wait."""

    seq: int
    id: str
    name: str
    owner: str
    priority: int
    ranks: int
    cpus: float
    gpus: float
    memory_bytes: int = 0

    @property
    def demand(self) -> Demand:
        return Demand(self.ranks, self.cpus, self.gpus, self.memory_bytes)


@dataclass(frozen=True)
class Admission:
    """Who may begin now, and what the first of those who may not is short of."""

    admitted: Sequence[Standing]
    next: Standing | None = None
    waits_for: Reason | None = None


def in_turn(queued: Sequence[Standing], holding: Sequence[Standing], nodes: Sequence[Node]) -> list[Standing]:
    """Higher priority first. Among equals it is the turn of whoever's owner has the smallest dominant share of the
    cluster (Ghodsi et al. 2011), with all that goes before; an owner's own jobs go in order of submission."""
    shares: dict[str, float] = defaultdict(float)
    for job in holding:
        shares[job.owner] += dominant_share(job.demand, nodes)
    ordered: list[Standing] = []
    for priority in sorted({job.priority for job in queued}, reverse=True):
        waiting: dict[str, deque[Standing]] = defaultdict(deque)
        for job in sorted(queued, key=lambda job: job.seq):
            if job.priority == priority:
                waiting[job.owner].append(job)
        turns = [(shares[owner], jobs[0].seq, owner) for owner, jobs in waiting.items()]
        heapq.heapify(turns)
        while turns:
            _, _, owner = heapq.heappop(turns)
            job = waiting[owner].popleft()
            ordered.append(job)
            shares[owner] += dominant_share(job.demand, nodes)
            if waiting[owner]:
                heapq.heappush(turns, (shares[owner], waiting[owner][0].seq, owner))
    return ordered


def dominant_share(demand: Demand, nodes: Sequence[Node]) -> float:
    """The largest of its shares of the cluster's CPUs, GPUs and memory, where there is that and it is known."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    told = [node.memory_bytes for node in nodes if node.memory_bytes is not None]
    memory = sum(told) if len(told) == len(nodes) else 0.0
    asked = ((demand.cpus, cpus), (demand.gpus, gpus), (demand.memory_bytes, memory))
    return max(demand.ranks * one / of if of else 0.0 for one, of in asked)


def admit(
    queued: Sequence[Standing], holding: Sequence[Standing], nodes: Sequence[Node], *, disk_full: str | None = None
) -> Admission:
    """In turn, as far as there is room: whoever does not fit holds up all behind it, so that a large job is never
    starved. Nobody while a disk is full, of which `disk_full` tells."""
    if queued and disk_full is not None:
        return Admission([], in_turn(queued, holding, nodes)[0], Reason("disk_full", f"waits: {disk_full}"))
    reserved = [job.demand for job in holding]
    admitted: list[Standing] = []
    for job in in_turn(queued, holding, nodes):
        short = shortage(job.demand, remaining(nodes, reserved))
        if short is not None:
            return Admission(admitted, job, Reason("no_room_yet", f"waits for room: {short} free now"))
        reserved.append(job.demand)
        admitted.append(job)
    return Admission(admitted)


def positions(queued: Sequence[Standing], holding: Sequence[Standing], nodes: Sequence[Node]) -> Mapping[str, int]:
    """Of each job that waits, by its id, how many are before it, and 1."""
    return {job.id: place for place, job in enumerate(in_turn(queued, holding, nodes), start=1)}
