"""Schedules: pure functions from step to a factor of the learning rate, or of the weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import assert_never

from codistill.spec import Constant, Cosine, Linear, Milestones, RampUp, Schedule, WeightSchedule

Factor = Callable[[int], float]


def open_schedule(spec: Schedule | WeightSchedule, steps: int) -> Factor:
    """The factor at step 0 .. steps - 1 that `spec` describes."""
    if isinstance(spec, RampUp):
        return lambda step: ramp_up(step, spec.ramp_steps)
    warmup_steps = spec.warmup_steps

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return after_warmup(spec, step, steps)

    return factor


def ramp_up(step: int, ramp_steps: int) -> float:
    """exp(-5 (1 - step / ramp_steps)^2), and 1 from `ramp_steps` on (Laine and Aila 2017, arXiv 1610.02242)."""
    return 1.0 if step >= ramp_steps else math.exp(-5 * (1 - step / ramp_steps) ** 2)


def after_warmup(spec: Schedule, step: int, steps: int) -> float:
    """The factor at a step after the warm-up, of a training of `steps`."""
    progress = (step - spec.warmup_steps) / max(1, steps - spec.warmup_steps)
    match spec:
        case Constant():
            return 1.0
        case Cosine(final_factor=final):
            return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
        case Linear(final_factor=final):
            return 1.0 + (final - 1.0) * progress
        case Milestones():
            return spec.factor ** sum(step >= milestone for milestone in spec.steps)
        case _:
            assert_never(spec)
