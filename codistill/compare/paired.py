"""Intervals for differences between two arms, paired by seed. Pure; scipy is imported only where a quantile is needed.

Runs of the same seed share initial weights and data order as far as the methods allow, so the difference within a seed
varies less than either arm does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95

Verdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True)
class Interval:
    """A mean of n values and where the true mean lies with 95 % confidence."""

    mean: float
    low: float
    high: float
    n: int


def t_interval(values: Sequence[float]) -> Interval | None:
    """Student's t interval for the mean of independent `values`; None for fewer than two."""
    if len(values) < 2:
        return None
    return _around(mean(values), stdev(values) / len(values) ** 0.5, len(values))


def by_seed(seeds: Sequence[int], values: Sequence[float]) -> dict[int, float]:
    """One value per seed, ascending; runs that share a seed stand as their mean."""
    return {seed: mean(v for s, v in zip(seeds, values, strict=True) if s == seed) for seed in sorted(set(seeds))}


def paired_differences(arm: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    """Arm less baseline for every seed that both have, ascending by seed."""
    return [arm[seed] - baseline[seed] for seed in sorted(arm.keys() & baseline.keys())]


def churn(matrix: npt.NDArray[np.float64], seeds: Sequence[int], kept: set[int]) -> float:
    """Mean over the pairs of runs whose seeds are both in `kept`, out of a symmetric matrix [runs, runs]."""
    places = [place for place, seed in enumerate(seeds) if seed in kept]
    upper = np.triu_indices(len(places), k=1)
    return float(matrix[np.ix_(places, places)][upper].mean())


def churn_interval(
    arm: npt.NDArray[np.float64],
    arm_seeds: Sequence[int],
    baseline: npt.NDArray[np.float64],
    baseline_seeds: Sequence[int],
) -> Interval | None:
    """Churn of an arm less that of the baseline, over their common seeds; None for fewer than three of them.

    Churn belongs to pairs of runs, and pairs that share a run are not independent; so the interval is a jackknife over
    seeds (Arvesen 1969, "Jackknifing U-statistics"): each seed in turn is left out of both arms, the standard error is
    sqrt((n - 1) / n * sum of squared deviations of the n differences), the quantile that of Student's t with n - 1
    degrees of freedom. Matrices are [runs, runs], see `churn`.
    """
    common = set(arm_seeds) & set(baseline_seeds)
    n = len(common)
    if n < 3:  # with one of two left out, no pair is left
        return None

    def difference(kept: set[int]) -> float:
        return churn(arm, arm_seeds, kept) - churn(baseline, baseline_seeds, kept)

    without = np.array([difference(common - {seed}) for seed in sorted(common)])
    variance = (n - 1) / n * float(((without - without.mean()) ** 2).sum())
    return _around(difference(common), variance**0.5, n)


def verdict(interval: Interval, *, lower_is_better: bool) -> Verdict:
    """What the interval of arm less baseline shows."""
    if interval.low <= 0 <= interval.high:
        return "no difference shown"
    return "better" if (interval.high < 0) == lower_is_better else "worse"


def repeated(values: Sequence[int]) -> list[int]:
    """What occurs more than once, in order of first occurrence."""
    return [value for value in dict.fromkeys(values) if values.count(value) > 1]


def _around(center: float, standard_error: float, n: int) -> Interval:
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * standard_error
    return Interval(center, center - half, center + half, n)
