"""What a mailbox carries: how it becomes arrays, and which gate stands before it."""

from __future__ import annotations

from typing import Protocol, TypeVar

from codistill.exchange.gate import Gate
from codistill.exchange.snapshot import Arrays
from codistill.ranks import Ranks

Shown = TypeVar("Shown", contravariant=True)


class Currency(Protocol[Shown]):
    """One kind of content. `Shown` is what a replica gives away: its module, say, or what it has said."""

    @property
    def every(self) -> bool:
        """Whether each snapshot holds something that no later one does, so that readers want all of them; the newest
        alone otherwise."""
        ...

    def gate(self, peer: int | None = None) -> Gate:
        """A new gate, for the snapshots of a peer, or of this replica itself."""
        ...

    def arrays(self, shown: Shown, ranks: Ranks, into: Arrays | None = None) -> Arrays:
        """What is published of `shown`, in memory of its own, which may be that of `into`: what an earlier call gave,
        and nobody reads any more. All ranks of a replica call it; what the first gets is sent."""
        ...
