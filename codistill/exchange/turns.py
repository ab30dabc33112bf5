"""Whose turn it is to teach, where that changes with every exchange: pure, the same on all ranks of a replica."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass


def worth_taking(published_in: int, now: int, *, taken_in: int | None, half_way: bool) -> bool:
    """Whether to fetch a snapshot of the exchange numbered `published_in` from one whose turn it is in exchange `now`.

    One a turn, so that what is received does not grow with how teachers and reader happen to be in step: the one of
    this exchange, or, when half of the turn is over, whatever there is. Meanwhile those before teach on.
    """
    return taken_in != now and (published_in >= now or half_way)


@dataclass(frozen=True)
class Turn:
    """Of one replica, as numbers of its peers."""

    now: tuple[int, ...]
    leaving: tuple[int, ...] = ()
    """Those before, who teach on until everyone whose turn it is has been heard: nobody waits, and a step without
    teachers would be a loss."""

    @property
    def peers(self) -> tuple[int, ...]:
        """All who may teach now, ascending."""
        return tuple(sorted((*self.now, *self.leaving)))

    def followed_by(self, now: tuple[int, ...], *, exact: bool) -> Turn:
        """The turn of `now`; with `exact` (lockstep) nobody teaches in the place of another."""
        if now == self.now:
            return self
        # Those leaving have not been replaced yet: whoever should have, never came.
        before = () if exact else self.leaving or self.now
        return Turn(now, tuple(peer for peer in before if peer not in now))

    def with_heard(self, heard: Container[int]) -> Turn:
        """Once everyone whose turn it is has been heard, the others are gone."""
        return Turn(self.now) if all(peer in heard for peer in self.now) else self
