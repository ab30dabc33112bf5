"""Whether a job fits a cluster: pure arithmetic on what nodes have and what ranks need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from codistill.spec import JobSpec

EPSILON = 1e-6


@dataclass(frozen=True)
class Demand:
    """What a job reserves: `ranks` bundles of `cpus` and `gpus` each. A bundle lives on one node."""

    ranks: int
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Node:
    """What one node has, or has left."""

    cpus: float
    gpus: float


def demand_of(spec: JobSpec) -> Demand:
    """All ranks of all replicas, since a job starts whole."""
    replicas = spec.replicas
    return Demand(ranks=replicas.count * replicas.ranks, cpus=replicas.cpus, gpus=replicas.gpus)


def places(demand: Demand, nodes: Sequence[Node]) -> int:
    """How many of the demand's bundles fit on `nodes` (counting more than it asks for, too)."""
    total = 0
    for node in nodes:
        by_cpu = int((node.cpus + EPSILON) / demand.cpus)
        by_gpu = int((node.gpus + EPSILON) / demand.gpus) if demand.gpus > 0 else by_cpu
        total += min(by_cpu, by_gpu)
    return total


def shortage(demand: Demand, nodes: Sequence[Node]) -> str | None:
    """None when the job fits `nodes`, else one sentence naming what is short."""
    if places(demand, nodes) >= demand.ranks:
        return None
    need_cpus, need_gpus = demand.ranks * demand.cpus, demand.ranks * demand.gpus
    have_cpus, have_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    asks = f"{demand.ranks} ranks of {demand.cpus:g} CPUs and {demand.gpus:g} GPUs"
    if need_cpus > have_cpus + EPSILON:
        return f"the job needs {need_cpus:g} CPUs ({asks}), the cluster has {have_cpus:g}"
    if need_gpus > have_gpus + EPSILON:
        return f"the job needs {need_gpus:g} GPUs ({asks}), the cluster has {have_gpus:g}"
    return f"the job needs {asks}, and the {len(nodes)} nodes have room for {places(demand, nodes)} of them"


def remaining(nodes: Sequence[Node], reserved: Sequence[Demand]) -> list[Node]:
    """What `nodes` have left once every reservation is placed on the first node where it fits.

    A bundle that fits nowhere (a node has gone) takes what there is: the result is never negative.
    """
    left = [[node.cpus, node.gpus] for node in nodes]
    for demand in reserved:
        for _ in range(demand.ranks):
            fitting = [n for n in left if n[0] + EPSILON >= demand.cpus and n[1] + EPSILON >= demand.gpus]
            target = fitting[0] if fitting else max(left, key=lambda n: n[0], default=None)
            if target is not None:
                target[0] = max(0.0, target[0] - demand.cpus)
                target[1] = max(0.0, target[1] - demand.gpus)
    return [Node(cpus, gpus) for cpus, gpus in left]


def nodes_from_ray(entries: Sequence[Mapping[str, object]]) -> list[Node]:
    """Living nodes out of what `ray.nodes()` returns, without those that offer jobs nothing: a head of `--num-cpus=0`,
    the node of a service beside a cluster."""
    nodes: list[Node] = []
    for entry in entries:
        resources = entry.get("Resources")
        if entry.get("Alive") and isinstance(resources, Mapping):
            node = Node(float(resources.get("CPU", 0.0)), float(resources.get("GPU", 0.0)))
            nodes += [node] if node.cpus or node.gpus else []
    return nodes
