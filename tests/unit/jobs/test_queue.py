"""Who is next among those that wait."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from codistill.capacity import Node
from jobs.queue import Standing, admit, dominant_share, in_turn, positions

TWO = [Node(2.0, 0.0)]


def waits(
    name: str, ranks: int = 1, *, seq: int = 0, owner: str = "ann", priority: int = 0, gpus: float = 0.0
) -> Standing:
    return Standing(seq, name, name, owner, priority, ranks, 1.0, gpus)


def runs(ranks: int, owner: str = "ann") -> Standing:
    return waits("runs", ranks, owner=owner)


def names(jobs: list[Standing]) -> str:
    return "".join(job.id for job in jobs)


def test_first_in_first_out() -> None:
    queue = [waits("b", seq=2), waits("c", seq=3), waits("a", seq=1)]
    assert names(list(admit(queue, [], TWO).admitted)) == "ab"
    assert names(list(admit(queue, [runs(1)], TWO).admitted)) == "a"
    assert names(list(admit(queue, [runs(2)], TWO).admitted)) == ""


def test_a_small_job_does_not_overtake_a_large_one() -> None:
    answer = admit([waits("large", 2, seq=1), waits("small", 1, seq=2)], [runs(1)], TWO)
    assert (answer.admitted, answer.next and answer.next.id) == ([], "large")
    assert answer.waits_for is not None
    assert answer.waits_for.code == "no_room_yet"
    assert "needs 2 CPUs" in answer.waits_for.message


def test_nothing_is_admitted_without_nodes() -> None:
    assert admit([waits("a")], [], []).admitted == []


def test_memory_that_is_reserved_is_no_room_for_another() -> None:
    node = [Node(8.0, 0.0, 100.0)]
    large, small = (
        replace(waits(name, seq=seq), memory_bytes=taken) for seq, (name, taken) in enumerate([("a", 60), ("b", 40)])
    )
    assert names(list(admit([large, small], [], node).admitted)) == "ab"
    answer = admit([large, replace(small, memory_bytes=41)], [], node)
    assert (names(list(answer.admitted)), answer.next and answer.next.id) == ("a", "b")
    assert answer.waits_for is not None
    assert (
        "41 B of memory, and the cluster has room for 0 of them, of memory 40 B at most free now"
        in answer.waits_for.message
    )


def test_higher_priority_goes_first_whoever_it_belongs_to() -> None:
    queue = [waits("a", seq=1), waits("b", seq=2, priority=5), waits("c", seq=3, priority=5), waits("d", priority=-1)]
    assert names(in_turn(queue, [], TWO)) == "bcad"


def test_owners_take_turns_by_what_they_hold() -> None:
    anns = [waits(name, seq=seq) for seq, name in enumerate("abcd")]
    bobs = [waits(name, seq=seq, owner="bob") for seq, name in enumerate("xy", start=9)]
    assert names(in_turn([*anns, *bobs], [], TWO)) == "axbycd"
    assert names(in_turn([*anns, *bobs], [runs(2)], TWO)) == "xyabcd", "ann holds two, bob nothing"
    large = waits("x", 3, seq=9, owner="bob")
    assert names(in_turn([*anns, large, bobs[1]], [], TWO)) == "axbcdy", "three of bob's weigh as much as three"


def test_a_share_is_of_what_is_scarcer() -> None:
    nodes = [Node(8.0, 2.0), Node(8.0, 2.0)]
    assert dominant_share(waits("a", 2, gpus=1.0).demand, nodes) == 0.5
    assert dominant_share(waits("a", 12).demand, nodes) == 0.75
    assert dominant_share(waits("a").demand, []) == 0.0
    heavy = replace(waits("a", 2), memory_bytes=30)
    assert dominant_share(heavy.demand, [Node(8.0, 0.0, 50.0), Node(8.0, 0.0, 50.0)]) == 0.6
    assert dominant_share(heavy.demand, [Node(8.0, 0.0, 50.0), Node(8.0, 0.0)]) == 0.125, "of memory not all is known"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ABC"), st.integers(-1, 1), st.integers(1, 3)), max_size=30), st.randoms())
def test_whatever_waits_each_stands_once_and_no_owner_is_ahead_by_more_than_one_job(
    asked: list[tuple[str, int, int]], shuffle: random.Random
) -> None:
    queue = [
        waits(str(seq), ranks, seq=seq, owner=owner, priority=priority)
        for seq, (owner, priority, ranks) in enumerate(asked)
    ]
    ordered = in_turn(queue, [], TWO)
    assert sorted(positions(queue, [], TWO).values()) == list(range(1, len(queue) + 1))
    shuffle.shuffle(queue)
    assert in_turn(queue, [], TWO) == ordered, "not by the order in which they were read"
    assert [j.priority for j in ordered] == sorted((j.priority for j in queue), reverse=True)
    for owner in "ABC":
        for priority in (-1, 0, 1):
            own = [j.seq for j in ordered if (j.owner, j.priority) == (owner, priority)]
            assert own == sorted(own)
    held: Counter[str] = Counter()
    for place, one in enumerate(ordered):
        rivals = {later.owner for later in ordered[place:] if later.priority == one.priority}
        assert held[one.owner] <= min(held[rival] for rival in rivals)
        held[one.owner] += one.ranks
