"""Whether a job fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codistill.capacity import Demand, Node, demand_of, nodes_from_ray, places, remaining, shortage
from tests.support import small_spec


@pytest.mark.parametrize(
    ("demand", "nodes", "message"),
    [
        (Demand(2, 1, 0), [Node(2, 0)], None),
        (Demand(4, 0.5, 0), [Node(2, 0)], None),
        (Demand(3, 1, 0), [Node(2, 0)], "the job needs 3 CPUs (3 ranks of 1 CPU), the cluster has 2"),
        (Demand(2, 1, 1), [Node(8, 1)], "the job needs 2 GPUs"),
        (Demand(2, 3, 0), [Node(4, 0), Node(2, 0)], "and the cluster has room for 1 of them"),
        (Demand(1, 1, 0), [], "the cluster has 0"),
        (Demand(3, 1, 0, 1000), [Node(4, 0, 2000), Node(2, 0, 1000)], None),
        (Demand(3, 1, 0, 1000), [Node(4, 0, 2999), Node(2, 0, 0)], "has room for 2 of them, of memory 3.0 kB at most"),
        (Demand(1, 1, 0, 1001), [Node(4, 0, 1000)], "1 rank of 1 CPU, 1.0 kB of memory"),
        (Demand(2, 1, 0, 10**15), [Node(1, 0, 1000), Node(1, 0, None), Node(1, 0, None)], None),
        (Demand(2, 1, 0, 0), [Node(2, 0, 0.0)], None),
    ],
)
def test_what_is_short(demand: Demand, nodes: list[Node], message: str | None) -> None:
    found = shortage(demand, nodes)
    assert (found is None) if message is None else (found is not None and message in found)


def test_reservations_take_their_nodes() -> None:
    left = remaining([Node(4, 1), Node(4, 0)], [Demand(2, 2, 0), Demand(1, 1, 0)])
    assert left == [Node(0, 1), Node(3, 0)]
    assert remaining([Node(1, 0)], [Demand(3, 1, 0)]) == [Node(0, 0)], "a node has gone: never negative"
    assert remaining([], [Demand(3, 1, 0)]) == []
    nodes = [Node(4, 0, 5), Node(4, 0, None), Node(4, 0, 20)]
    assert remaining(nodes, [Demand(1, 1, 0, 6), Demand(1, 1, 0, 4)]) == [
        Node(3, 0, 1),
        Node(3, 0, None),
        Node(4, 0, 20),
    ]


@given(
    ranks=st.integers(1, 8),
    cpus=st.sampled_from([0.5, 1.0, 2.0]),
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=4),
)
def test_what_fits_can_be_reserved_and_leaves_exactly_the_rest(ranks: int, cpus: float, sizes: list[int]) -> None:
    nodes, demand = [Node(float(size), 0.0) for size in sizes], Demand(ranks, cpus, 0.0)
    if shortage(demand, nodes) is None:
        left = remaining(nodes, [demand])
        assert sum(node.cpus for node in left) == sum(sizes) - ranks * cpus
        assert places(demand, left) == places(demand, nodes) - ranks


def test_out_of_spec_and_ray() -> None:
    assert demand_of(small_spec(replicas={"count": 3, "cpus": 0.5})) == Demand(3, 0.5, 0.0)
    entries = [
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0, "memory": 1e9}},
        {"Alive": False, "Resources": {"CPU": 4.0}},
        {"Alive": True, "Resources": {"memory": 1e9}},
        {"Alive": True, "Resources": {"GPU": 2.0}},
    ]
    assert nodes_from_ray(entries) == [Node(4.0, 1.0, 1e9), Node(0.0, 2.0)], "a head without CPUs takes no replica"
    assert demand_of(small_spec(), 7).memory_bytes == 7


@pytest.mark.parametrize("share", ["cpus", "gpus"])
def test_a_share_that_is_next_to_nothing_is_refused(share: str) -> None:
    """Dividing by it would give more places than a number holds."""
    assert getattr(small_spec(replicas={share: 0.01}).replicas, share) == 0.01
    with pytest.raises(ValueError, match=r"0\.01"):
        small_spec(replicas={share: 5e-324})
