"""How often somebody may ask, by token buckets; and how many requests of theirs may be open at once."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Generator, Hashable
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """So many at once, and so many a second in the long run."""

    per_s: float
    burst: float


@dataclass
class Bucket:
    """What is left of a burst at a moment."""

    left: float
    at: float

    def take(self, rate: Rate, now: float) -> float:
        """0 when one more may pass now; else the seconds until one may, and nothing is taken."""
        self.left = min(rate.burst, self.left + max(0.0, now - self.at) * rate.per_s)
        self.at = now
        if self.left >= 1.0:
            self.left -= 1.0
            return 0.0
        return (1.0 - self.left) / rate.per_s


class Buckets:
    """One for each who asks; those not seen for longest are forgotten, and begin anew with a full burst."""

    def __init__(self, most: int = 10_000) -> None:
        self._buckets: OrderedDict[Hashable, Bucket] = OrderedDict()
        self._most = most

    def take(self, who: Hashable, rate: Rate, now: float) -> float:
        """Seconds until `who` may ask again; 0 for now."""
        bucket = self._buckets.setdefault(who, Bucket(rate.burst, now))
        self._buckets.move_to_end(who)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return bucket.take(rate, now)


class OpenRequests:
    """How many each has, who asks."""

    def __init__(self) -> None:
        self._open: Counter[Hashable] = Counter()

    @contextmanager
    def one_more(self, who: Hashable, most: int) -> Generator[bool]:
        """Whether `who` may have another, which then counts until its end, whatever that is."""
        if self._open[who] >= most:
            yield False
            return
        self._open[who] += 1
        try:
            yield True
        finally:
            self._open[who] -= 1
            if not self._open[who]:
                del self._open[who]
