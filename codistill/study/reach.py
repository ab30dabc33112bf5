"""What it took each arm to be as good as the baseline ever was, on validation. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from codistill.compare.paired import Interval, t_interval
from codistill.study.curves import Point

Curves = Mapping[int, Sequence[Point]]
"""Of the runs of an arm, by seed."""


@dataclass(frozen=True)
class Reach:
    """Of an arm, in the mean over the seeds in which it got there; as multiples of what the baseline took itself."""

    seeds: int
    """That both arms have a curve of."""
    reached: int
    """Of these, in how many the arm got there."""
    steps: float | None
    """None where it never did."""
    steps_interval: Interval | None
    """Paired by seed; None where the arm did not get there in all of two seeds or more: those in which it did are not
    drawn by chance."""
    flops: float | None
    """None where that is not known either."""
    received_bytes: float | None
    """By all replicas of a job together: no multiple, since most baselines receive nothing."""


def reach_of(arm: Curves, baseline: Curves) -> Reach:
    """The goal of a seed is the baseline's lowest log loss, and the step at which it had it what is divided by."""
    common = [seed for seed in sorted(arm.keys() & baseline.keys()) if arm[seed] and baseline[seed]]
    goals = [min(baseline[seed], key=lambda point: (point.log_loss, point.step)) for seed in common]
    found = [(first_at(arm[seed], goal.log_loss), goal) for seed, goal in zip(common, goals, strict=True)]
    pairs = [(point, goal) for point, goal in found if point is not None]
    if not pairs:
        return Reach(len(common), 0, None, None, None, None)
    steps = [point.step / goal.step for point, goal in pairs]
    flops = mean(point.flops / goal.flops for point, goal in pairs)
    return Reach(
        seeds=len(common),
        reached=len(pairs),
        steps=mean(steps),
        steps_interval=t_interval(steps) if len(pairs) == len(common) else None,
        flops=None if math.isnan(flops) else flops,
        received_bytes=mean(point.received_bytes for point, _ in pairs),
    )


def first_at(curve: Sequence[Point], log_loss: float) -> Point | None:
    """Where a curve first is as low as `log_loss`, on the straight line between the points about it; at its first point
    if that is as low already; None where it never is."""
    before: Point | None = None
    for point in curve:
        if point.log_loss <= log_loss:
            return point if before is None else _between(before, point, log_loss)
        before = point
    return None


def _between(before: Point, after: Point, log_loss: float) -> Point:
    share = (before.log_loss - log_loss) / (before.log_loss - after.log_loss)

    def at(start: float, end: float) -> float:
        return start + share * (end - start)

    return Point(
        step=round(at(before.step, after.step)),
        log_loss=log_loss,
        seconds=at(before.seconds, after.seconds),
        received_bytes=at(before.received_bytes, after.received_bytes),
        flops=at(before.flops, after.flops),
        seeds=1,
    )
