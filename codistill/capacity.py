"""Whether a job fits a cluster: pure arithmetic on what nodes have and what ranks need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from codistill.spec import JobSpec
from codistill.words import count, size

EPSILON = 1e-6


@dataclass(frozen=True)
class Demand:
    """What a job reserves: `ranks` bundles of `cpus`, `gpus` and memory each. A bundle lives on one node."""

    ranks: int
    cpus: float
    gpus: float
    memory_bytes: int = 0
    """Of the node, not of a GPU; 0 where it is not known."""

    @property
    def bundle(self) -> str:
        """One of them in words."""
        memory = f", {size(self.memory_bytes)} of memory" if self.memory_bytes else ""
        gpus = f" and {count(self.gpus, 'GPU')}" if self.gpus else ""
        return f"{count(self.cpus, 'CPU')}{gpus}{memory}"


@dataclass(frozen=True)
class Node:
    """What one node has, or has left."""

    cpus: float
    gpus: float
    memory_bytes: float | None = None
    """For processes, without the object store; None where it is not known, and nothing is refused for it."""


def demand_of(spec: JobSpec, memory_bytes: int | None = None) -> Demand:
    """All ranks of all replicas, since a job starts whole; `memory_bytes` is what a rank takes, if that is known."""
    replicas = spec.replicas
    return Demand(replicas.count * replicas.ranks, replicas.cpus, replicas.gpus, memory_bytes or 0)


def places(demand: Demand, nodes: Sequence[Node]) -> int:
    """How many of the demand's bundles fit on `nodes` (counting more than it asks for, too)."""
    total = 0
    for node in nodes:
        by_cpu = int((node.cpus + EPSILON) / demand.cpus)
        by_gpu = int((node.gpus + EPSILON) / demand.gpus) if demand.gpus > 0 else by_cpu
        total += min(by_cpu, by_gpu, _by_memory(demand, node, by_cpu))
    return total


def _by_memory(demand: Demand, node: Node, otherwise: int) -> int:
    if not demand.memory_bytes or node.memory_bytes is None:
        return otherwise
    return int(node.memory_bytes / demand.memory_bytes)


def shortage(demand: Demand, nodes: Sequence[Node]) -> str | None:
    """None when the job fits `nodes`, else one sentence naming what is short."""
    if places(demand, nodes) >= demand.ranks:
        return None
    need_cpus, need_gpus = demand.ranks * demand.cpus, demand.ranks * demand.gpus
    have_cpus, have_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    asks = f"{count(demand.ranks, 'rank')} of {demand.bundle}"
    if need_cpus > have_cpus + EPSILON:
        return f"the job needs {count(need_cpus, 'CPU')} ({asks}), the cluster has {have_cpus:g}"
    if need_gpus > have_gpus + EPSILON:
        return f"the job needs {count(need_gpus, 'GPU')} ({asks}), the cluster has {have_gpus:g}"
    known = [node.memory_bytes for node in nodes if node.memory_bytes is not None]
    memory = f", of memory {size(max(known))} at most" if known and demand.memory_bytes else ""
    return f"the job needs {asks}, and the cluster has room for {places(demand, nodes)} of them{memory}"


def remaining(nodes: Sequence[Node], reserved: Sequence[Demand]) -> list[Node]:
    """What `nodes` have left once every reservation is placed on the first node where it fits.

    A bundle that fits nowhere (a node has gone) takes what there is: the result is never negative.
    """
    left = list(nodes)
    for demand in reserved:
        one = replace(demand, ranks=1)
        for _ in range(demand.ranks if left else 0):
            fitting = [place for place, node in enumerate(left) if places(one, [node])]
            target = fitting[0] if fitting else max(range(len(left)), key=lambda place: left[place].cpus)
            left[target] = _without(left[target], one)
    return left


def _without(node: Node, taken: Demand) -> Node:
    memory = None if node.memory_bytes is None else max(0.0, node.memory_bytes - taken.memory_bytes)
    return Node(max(0.0, node.cpus - taken.cpus), max(0.0, node.gpus - taken.gpus), memory)


def nodes_from_ray(entries: Sequence[Mapping[str, object]]) -> list[Node]:
    """Living nodes out of what `ray.nodes()` returns, without those that offer jobs nothing: a head of `--num-cpus=0`,
    the node of a service beside a cluster."""
    nodes: list[Node] = []
    for entry in entries:
        resources = entry.get("Resources")
        if entry.get("Alive") and isinstance(resources, Mapping):
            memory = resources.get("memory")
            node = Node(
                float(resources.get("CPU", 0.0)),
                float(resources.get("GPU", 0.0)),
                None if memory is None else float(memory),
            )
            nodes += [node] if node.cpus or node.gpus else []
    return nodes
