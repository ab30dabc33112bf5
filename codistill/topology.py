"""Who learns from whom: pure, so that every replica knows the same without a word."""

from __future__ import annotations

from typing import assert_never

from codistill.spec import All, Explicit, Pairs, Ring, Topology, misfit


def teachers_of(topology: Topology, replica: int, replicas: int) -> tuple[int, ...]:
    """The replicas that `replica` learns from, ascending. Never itself; empty when it is alone.

    Raises `ValueError` when the topology does not fit that many.
    """
    if (problem := misfit(topology, replicas)) is not None:
        raise ValueError(problem)
    match topology:
        case All():
            return tuple(other for other in range(replicas) if other != replica)
        case Ring():
            return ((replica - 1) % replicas,) if replicas > 1 else ()
        case Pairs():
            return (replica ^ 1,)
        case Explicit():
            return tuple(sorted(topology.teachers[replica]))
        case _:
            assert_never(topology)
