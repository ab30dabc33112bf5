"""Whether a replica that failed is started again: one rule for the local runner and for the driver on Ray. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LONGEST_BACKOFF_S = 60.0


@dataclass(frozen=True)
class Failure:
    """One failed run of a replica."""

    step: int
    """Updates completed when it was last heard of."""
    error: str
    died: bool
    """Whether its process vanished, rather than the training raising an error."""


@dataclass(frozen=True)
class Retry:
    delay_s: float


@dataclass(frozen=True)
class GiveUp:
    error: str


def after_failure(failures: Sequence[Failure], max_failures: int) -> Retry | GiveUp:
    """What to do after the last of a replica's `failures` (oldest first; at least one).

    The first restart is immediate, since most failures come alone; then 1, 2, 4 ... 60 s. An error that training
    raises twice at the same step will be raised a third time. A process that vanishes says nothing of the kind.
    """
    last = failures[-1]
    if len(failures) > max_failures:
        return GiveUp(last.error)
    if not last.died and last in failures[:-1]:
        return GiveUp(f"{last.error} (twice at step {last.step})")
    return Retry(0.0 if len(failures) == 1 else min(LONGEST_BACKOFF_S, 2.0 ** (len(failures) - 2)))
