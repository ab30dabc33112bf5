"""Schedules: pure functions from step to a factor of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import assert_never

from codistill.spec import Constant, Cosine, Schedule

Factor = Callable[[int], float]


def open_schedule(spec: Schedule, steps: int) -> Factor:
    """The factor at step 0 .. steps - 1 that `spec` describes."""
    match spec:
        case Constant():
            return lambda step: 1.0
        case Cosine(warmup_steps=warmup_steps):
            return lambda step: cosine(step, steps=steps, warmup_steps=warmup_steps)
        case _:
            assert_never(spec)


def cosine(step: int, *, steps: int, warmup_steps: int) -> float:
    """Rises linearly to 1 over the warm-up, then falls as half a cosine to 0 at `steps`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * progress))
