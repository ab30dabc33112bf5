"""What the ranks of a replica tell each other before a step, and what follows: pure, the same on all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from codistill.exchange.shelf import HELD_BY_RANKS
from codistill.exchange.snapshot import SnapshotId

_WORDS = 3 * HELD_BY_RANKS + 1
"""Integers in which a rank tells the others of one peer."""


@dataclass(frozen=True)
class Said:
    """Of one peer, by one rank: the snapshots it holds, and the peer's step as far as it has heard."""

    held: tuple[SnapshotId, ...]
    peer_step: int | None


@dataclass(frozen=True)
class Agreed:
    """Of one peer: the snapshot that teaches now, if any, and the newest that any rank has heard of the peer's step."""

    chosen: SnapshotId | None
    peer_step: int | None


def agree(said: Sequence[Said]) -> Agreed:
    """The newest snapshot that every rank holds: what all of them can change to in the same step."""
    return Agreed(held_by_all([one.held for one in said]), _newest_step(said))


def agree_in_lockstep(said: Sequence[Said], own: SnapshotId | None) -> Agreed:
    """`own`, if every rank holds one: each waited for the same version, though perhaps of another incarnation of the
    peer, whose weights are the same."""
    return Agreed(own if all(one.held for one in said) else None, _newest_step(said))


def held_by_all(by_rank: Sequence[Iterable[SnapshotId]]) -> SnapshotId | None:
    """The newest snapshot that is in all of them."""
    return max(set[SnapshotId].intersection(*(set(held) for held in by_rank)), default=None)


def pack(stopped: bool, said: Sequence[Said]) -> list[int]:
    """A rank's words as integers, always as many: whether it was asked to stop, then what it says of each peer."""
    numbers = [int(stopped)]
    for one in said:
        words = [-1 if one.peer_step is None else one.peer_step]
        words += [number for who in one.held for number in (who.fence, who.incarnation, who.version)]
        numbers += words + [-1] * (_WORDS - len(words))
    return numbers


def unpack(peers: Sequence[int], numbers: Sequence[int]) -> tuple[bool, list[Said]]:
    """What `pack` was given."""
    said: list[Said] = []
    for at, peer in enumerate(peers):
        words = numbers[1 + at * _WORDS :][:_WORDS]
        triples = [words[first : first + 3] for first in range(1, _WORDS, 3)]
        held = tuple(SnapshotId(peer, *triple) for triple in triples if triple[0] >= 0)
        said.append(Said(held, None if words[0] < 0 else words[0]))
    return bool(numbers[0]), said


def _newest_step(said: Sequence[Said]) -> int | None:
    return max((one.peer_step for one in said if one.peer_step is not None), default=None)
