"""Quality on validation against what it took: steps, seconds, bytes, floating-point operations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from statistics import mean
from typing import Any

import numpy as np
import pyarrow as pa

from codistill.compare.arms import MAIN, arm_of
from codistill.compare.models import VALIDATION
from codistill.records import read, values
from codistill.run_dir import RunDir, read_json
from codistill.spec import JobSpec
from codistill.study.effort import flops_by_step

RECEIVED = "exchange/bytes_received"


@dataclass(frozen=True)
class Point:
    """A mean over the seeds of an arm that were measured at this step."""

    step: int
    log_loss: float
    """On validation, nats, of the model that stands for the run."""
    seconds: float
    """Since the first row of metrics, without the pauses of a training that was interrupted."""
    received_bytes: float
    """By all replicas of the job together."""
    flops: float
    """Of all replicas of the job together; NaN where facts are not known."""
    seeds: int


def points_of(run: RunDir, replica: str, facts: Mapping[str, Any] | str) -> list[Point]:
    """Of a run, from what it has recorded of the model that stands for it. `facts` is what `codistill.describe` says of
    the job."""
    table, spec = read(run, replica, "metrics"), run.read_spec()
    steps, losses = values(table, VALIDATION)
    received = _received(run, replica, steps)
    at = trained_seconds(table, steps)
    return [
        Point(step, loss, at[n], received[n], _flops(spec, facts, step), 1)
        for n, (step, loss) in enumerate(zip(steps, losses, strict=True))
    ]


def mean_curve(curves: Iterable[Sequence[Point]]) -> list[Point]:
    """Of several runs, step by step, over those that were measured there."""
    found: dict[int, list[Point]] = {}
    for point in chain.from_iterable(curves):
        found.setdefault(point.step, []).append(point)
    return [_mean(points) for _, points in sorted(found.items())]


def _flops(spec: JobSpec, facts: Mapping[str, Any] | str, step: int) -> float:
    return math.nan if isinstance(facts, str) else flops_by_step(spec, facts, step)


def _received(run: RunDir, replica: str, steps: Sequence[int]) -> list[float]:
    """By all replicas of the arm together when each had done so many steps."""
    fence = run.fences()[-1]
    result = read_json(run.result(fence)) or {}
    own = [name for name in result.get("replicas", {}) if arm_of(name) == arm_of(replica)]
    if arm_of(replica) != MAIN:  # a control has no teachers
        return [0.0] * len(steps)
    total = np.zeros(len(steps))
    for name in own:
        logged, counts = values(read(run, name, "metrics"), RECEIVED)
        if logged:
            before = np.searchsorted(logged, steps, side="right")
            total += np.concatenate([[0.0], counts])[before]
    return [float(count) for count in total]


def trained_seconds(table: pa.Table, steps: Sequence[int]) -> list[float]:
    """Since the first row of metrics, at each step of an evaluation; of a training that was interrupted, without
    the time from the last row before to the first row after."""
    first: dict[tuple[int, int], datetime] = {}
    last: dict[tuple[int, int], datetime] = {}
    evaluated: dict[int, tuple[tuple[int, int], datetime]] = {}
    columns = [table[name].to_pylist() for name in ("fence", "incarnation", "time", "name", "step")]
    for fence, incarnation, time, name, step in zip(*columns, strict=True):
        whose = (fence, incarnation)
        first[whose], last[whose] = min(time, first.get(whose, time)), max(time, last.get(whose, time))
        if name == VALIDATION:
            evaluated[step] = (whose, time)
    before, total = dict[tuple[int, int], timedelta](), timedelta()
    for whose in sorted(first):
        before[whose] = total
        total += last[whose] - first[whose]
    found = [evaluated[step] for step in steps]
    return [(before[whose] + time - first[whose]).total_seconds() for whose, time in found]


def _mean(points: Sequence[Point]) -> Point:
    return Point(
        step=points[0].step,
        log_loss=mean(point.log_loss for point in points),
        seconds=mean(point.seconds for point in points),
        received_bytes=mean(point.received_bytes for point in points),
        flops=mean(point.flops for point in points),
        seeds=len(points),
    )
