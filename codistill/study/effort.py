"""What each arm is given, so that nobody wins by having been given more. Pure.

Two measures, each of a whole job with all its replicas and phases: samples whose labels a loss has seen (times units,
for tokens), and floating-point operations, forwards of teachers among them. Controls are not counted: they are arms of
their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from codistill.price import facts_of_each
from codistill.spec import JobSpec

TOLERANCE = 0.05
"""Share by which an arm may differ from the baseline and still count as given the same."""


@dataclass(frozen=True)
class Effort:
    """Of one job."""

    units: int
    """Samples or tokens, repetitions counted."""
    unit: str
    flops: float
    """Multiplications and additions counted apart."""


@dataclass(frozen=True)
class Ratio:
    """What an arm is given, as a multiple of what the baseline is."""

    arm: str
    units: float
    flops: float

    @property
    def is_equal(self) -> bool:
        return all(abs(ratio - 1) <= TOLERANCE for ratio in (self.units, self.flops))

    def __str__(self) -> str:
        return f"{self.arm}: {self.units:.2f} x the samples, {self.flops:.2f} x the operations"


def effort_of(spec: JobSpec, facts: Mapping[str, Any]) -> Effort:
    """`facts` is what `codistill.describe` says of the spec."""
    samples = spec.total_steps * spec.training.batch_size * spec.replicas.count
    return Effort(samples * int(facts["units_per_sample"]), str(facts["unit"]), flops_by_step(spec, facts))


def flops_by_step(spec: JobSpec, facts: Mapping[str, Any], step: int | None = None) -> float:
    """Of all replicas until `step` steps are done, all if left out, counted over all phases; teachers are heard from
    the burn-in on."""
    return sum(_flops_of_one(spec, one["phases"], step) for one in facts_of_each(spec, facts))


def _flops_of_one(spec: JobSpec, phases: Mapping[str, Mapping[str, Any]], step: int | None) -> float:
    total, before = 0.0, 0
    for phase in phases.values():
        done = phase["steps"] if step is None else min(max(step - before, 0), phase["steps"])
        total += _flops(spec, {**phase, "steps": done})
        before += phase["steps"]
    return total


def _flops(spec: JobSpec, phase: Mapping[str, Any]) -> float:
    heard = max(0, phase["steps"] - (spec.burn_in_steps if spec.exchanges and not spec.averages else 0))
    return phase["steps"] * phase["flops_per_step"] + heard * phase["teachers_flops_per_step"]


def ratios(efforts: Mapping[str, Effort], baseline: str) -> dict[str, Ratio]:
    """Of each arm."""
    base = efforts[baseline]
    return {arm: Ratio(arm, one.units / base.units, one.flops / base.flops) for arm, one in efforts.items()}
