"""Who learns from whom: pure, so that every replica knows the same without a word."""

from __future__ import annotations

from typing import assert_never

from codistill.spec import (
    ALL_UP_TO_REPLICAS,
    All,
    AutoTopology,
    Explicit,
    Pairs,
    Ring,
    Rotating,
    Topology,
    misfit,
)


def teachers_of(topology: Topology, replica: int, replicas: int, exchange: int = 0) -> tuple[int, ...]:
    """The replicas that `replica` learns from after its exchange of that number (see `PublishRule.exchange`),
    ascending. Never itself; empty when it is alone.

    Raises `ValueError` when the topology does not fit that many.
    """
    if (problem := misfit(topology, replicas)) is not None:
        raise ValueError(problem)
    match topology:
        case AutoTopology():
            chosen = All() if replicas <= ALL_UP_TO_REPLICAS else Rotating()
            return teachers_of(chosen, replica, replicas, exchange)
        case All():
            return tuple(other for other in range(replicas) if other != replica)
        case Ring():
            return ((replica - 1) % replicas,) if replicas > 1 else ()
        case Rotating():
            return ((replica + 2 ** (exchange % _round(replicas))) % replicas,) if replicas > 1 else ()
        case Pairs():
            return (replica ^ 1,)
        case Explicit():
            return tuple(sorted(topology.teachers[replica]))
        case _:
            assert_never(topology)


def all_teachers_of(topology: Topology, replica: int, replicas: int) -> tuple[int, ...]:
    """The replicas that `replica` ever learns from, ascending."""
    rounds = range(_round(replicas))
    return tuple(sorted({teacher for e in rounds for teacher in teachers_of(topology, replica, replicas, e)}))


def _round(replicas: int) -> int:
    """Exchanges after which `rotating` begins anew: log2, rounded up, and 1 at least."""
    return max(1, (replicas - 1).bit_length())
