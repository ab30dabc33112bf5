"""Who learns from whom: pure, so that every replica knows the same without a word."""

from __future__ import annotations

from typing import assert_never

from codistill.spec import All, Ring, Topology


def teachers_of(topology: Topology, replica: int, replicas: int) -> tuple[int, ...]:
    """The replicas that `replica` learns from, ascending. Never itself; empty when it is alone."""
    match topology:
        case All():
            return tuple(other for other in range(replicas) if other != replica)
        case Ring():
            return ((replica - 1) % replicas,) if replicas > 1 else ()
        case _:
            assert_never(topology)
