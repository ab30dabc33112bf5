"""When snapshots are published and which one is current: pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

EACH_KEPT = 16
"""Snapshots that wait for whoever takes them, where each counts and not the newest alone."""


@dataclass(frozen=True)
class PublishRule:
    """Before which steps a replica shows itself to its peers.

    With burn-in 3 and interval 2, versions 3, 4, 6, 8 are published, and in lockstep steps 3..8 learn from versions
    3, 4, 4, 6, 6, 8.
    """

    burn_in_steps: int
    interval_steps: int
    ends_at: int | None = None
    """A step that is one of them whatever the interval: the last, for what belongs to the finished model."""

    def due(self, step: int) -> bool:
        """Whether version `step` (the weights after `step` updates) is published before step `step` begins."""
        if step in (self.burn_in_steps, self.ends_at):
            return True
        return step > self.burn_in_steps and step % self.interval_steps == 0

    def newest_due(self, step: int) -> int | None:
        """The newest version that a peer about to begin step `step` has published; None during burn-in."""
        if step == self.ends_at:
            return step
        if step < self.burn_in_steps:
            return None
        return max(self.burn_in_steps, step - step % self.interval_steps)

    def half_way(self, step: int) -> bool:
        """Whether step `step` is in the second half of those between two exchanges."""
        return 2 * (step % self.interval_steps + 1) > self.interval_steps

    def exchange(self, step: int) -> int:
        """How many exchanges lie between the first and the newest before step `step`; 0 during burn-in too."""
        return max(0, step // self.interval_steps - self.burn_in_steps // self.interval_steps)

    def gathered_from(self, step: int) -> int:
        """What is said in step `step` is published with all that was said from this step on: since the version before,
        or, for the first one, in the last interval of burn-in."""
        newest = self.newest_due(step)
        return self.burn_in_steps - self.interval_steps if newest is None else newest

    def due_between(self, older: int, newer: int) -> int:
        """How many versions are published after version `older` and before `newer`."""
        return max(0, self.exchange(newer) - self.exchange(older) - 1)


def snapshots_to_keep(
    *,
    lockstep: bool,
    replicas: int,
    ranks: int,
    interval_steps: int,
    checkpoint_interval_steps: int,
    every: bool = False,
) -> int:
    """How many of its own snapshots a replica leaves for its peers.

    Two do when nobody waits: the newest, and the one that a reader may be fetching; four when readers have several
    ranks, since the others fetch what the first has fetched already; more where readers want every one. In lockstep a
    peer may be as many exchanges behind as there are replicas (in a ring nobody waits for those who read him), and one
    that was killed goes back to its last checkpoint but one at worst, and needs every version since.
    """
    if not lockstep:
        return EACH_KEPT if every else 2 if ranks == 1 else 4
    return replicas + 1 + 2 * math.ceil(checkpoint_interval_steps / interval_steps)
