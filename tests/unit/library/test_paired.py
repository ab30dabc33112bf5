"""Intervals over seeds, against scipy and against sums written out."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from codistill.compare.paired import (
    Interval,
    by_seed,
    churn,
    churn_interval,
    paired_differences,
    t_interval,
    verdict,
)


def test_students_interval_is_scipys() -> None:
    values = [0.31, -0.2, 0.05, 0.4, 0.11]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    found = t_interval(values)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), expected.low, expected.high))
    assert found.n == 5
    assert t_interval([0.3]) is None


def test_values_of_a_seed_are_averaged_and_paired() -> None:
    arm = by_seed([3, 1, 3], [1.0, 5.0, 2.0])
    assert arm == {1: 5.0, 3: 1.5}
    assert paired_differences(arm, {3: 1.0, 1: 1.0, 2: 7.0}) == [4.0, 0.5]


def symmetric(rng: np.random.Generator, runs: int) -> np.ndarray:
    upper = np.triu(rng.random((runs, runs)), k=1)
    return upper + upper.T


def test_churn_of_some_seeds_is_the_mean_over_their_pairs() -> None:
    matrix = symmetric(np.random.default_rng(0), 4)
    pairs = combinations([0, 1, 3], 2)
    assert churn(matrix, [5, 6, 7, 8], {5, 6, 8}) == pytest.approx(np.mean([matrix[pair] for pair in pairs]))


def test_the_interval_of_churn_is_a_jackknife_over_seeds() -> None:
    rng = np.random.default_rng(1)
    arm, baseline = symmetric(rng, 5), symmetric(rng, 5)
    arm_seeds, baseline_seeds = [1, 2, 3, 4, 9], [4, 3, 2, 1, 8]

    def mean_of_pairs(matrix: np.ndarray, seeds: list[int], kept: list[int]) -> float:
        places = [seeds.index(seed) for seed in kept]
        return float(np.mean([matrix[i, j] for i, j in combinations(places, 2)]))

    def difference(kept: list[int]) -> float:
        return mean_of_pairs(arm, arm_seeds, kept) - mean_of_pairs(baseline, baseline_seeds, kept)

    without = [difference([seed for seed in (1, 2, 3, 4) if seed != left]) for left in (1, 2, 3, 4)]
    error = np.sqrt(3 / 4 * np.sum((without - np.mean(without)) ** 2))
    half = 3.182446 * error  # the 97.5 % quantile of Student's t with 3 degrees of freedom
    found = churn_interval(arm, arm_seeds, baseline, baseline_seeds)
    assert found is not None
    center = difference([1, 2, 3, 4])
    assert (found.mean, found.low, found.high) == pytest.approx((center, center - half, center + half), rel=1e-5)
    assert found.n == 4
    assert churn_interval(arm, arm_seeds, baseline, [1, 2, 7, 6, 5]) is None


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    """Where a matrix is the sum of one number per run, its mean over pairs is twice their mean: nothing but a mean."""
    rng = np.random.default_rng(2)
    one, other = rng.random(6), rng.random(6)
    seeds = list(range(6))
    found = churn_interval(one[:, None] + one[None, :], seeds, other[:, None] + other[None, :], seeds)
    expected = t_interval(list(2 * (one - other)))
    assert found is not None
    assert expected is not None
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))


@pytest.mark.parametrize(
    ("low", "high", "lower_is_better", "says"),
    [
        (-2.0, -1.0, True, "better"),
        (-2.0, -1.0, False, "worse"),
        (1.0, 2.0, True, "worse"),
        (1.0, 2.0, False, "better"),
        (-1.0, 1.0, True, "no difference shown"),
        (0.0, 1.0, True, "no difference shown"),
        (0.0, 0.0, False, "no difference shown"),
    ],
)
def test_the_verdict(low: float, high: float, lower_is_better: bool, says: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high, 5), lower_is_better=lower_is_better) == says
