"""What a comparison says: scores of single models, one row per arm, differences to the baseline. Plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Annotated

import numpy as np
from pydantic import PlainSerializer, PlainValidator

from codistill.compare.metrics import (
    accuracy,
    calibration,
    difference_matrix,
    flips,
    flips_matrix,
    log_loss,
    mean_abs_difference,
)
from codistill.compare.models import Incumbent, Model
from codistill.compare.paired import Interval, Verdict, by_seed, churn_interval, paired_differences, t_interval, verdict
from codistill.compare.predictions import Floats

LOWER_IS_BETTER = {
    "log_loss": True,
    "accuracy": False,
    "calibration_error": True,
    "mean_abs_difference": True,
    "flips": True,
}
"""The metrics for which arms are set against the baseline."""


Matrix = Annotated[
    Floats, PlainValidator(lambda rows: np.asarray(rows, np.float64)), PlainSerializer(np.ndarray.tolist)
]
"""In JSON a list of lists."""


@dataclass(frozen=True)
class Score:
    """One model of an arm on the test set; `run`, `seed` and `replica` are None where it is of several."""

    arm: str
    run: str | None
    """Its job's id."""
    seed: int | None
    replica: str | None
    validation_log_loss: float
    accuracy: float
    log_loss: float
    calibration_error: float
    confidence_gap: float
    """Mean confidence less accuracy: positive when too sure."""
    seconds: float
    bytes_exchanged: int
    diversity_flips: float | None = None
    diversity_kl_nats: float | None = None
    incumbent_mean_abs_difference: float | None = None
    incumbent_flips: float | None = None
    curve: tuple[tuple[int, float], ...] = ()
    """Steps, and log loss on validation after them; empty for several models and where none was recorded."""


@dataclass(frozen=True)
class Row:
    """One arm. All but churn and bytes are means over its runs; what does not exist is None."""

    arm: str
    runs: int
    validation_log_loss: float
    accuracy: float
    log_loss: float
    mean_abs_difference: float | None
    """Churn: mean absolute difference of probabilities over samples and classes, averaged over pairs of runs; None with
    fewer than two runs."""
    flips: float | None
    """Share of samples whose most likely class differs between two runs."""
    seconds: float
    bytes_exchanged: int
    calibration_error: float | None = None
    confidence_gap: float | None = None
    diversity_flips: float | None = None
    """Between the replicas of one run; None where a run has trained one only."""
    diversity_kl_nats: float | None = None
    incumbent_mean_abs_difference: float | None = None
    """Churn against the deployed model, if one was given; None where it is the only run of the arm."""
    incumbent_flips: float | None = None
    one_model: bool = True
    """False for an ensemble, which costs several forward passes to serve."""


@dataclass(frozen=True)
class Difference:
    """An arm less the baseline in one metric, over `n` common seeds; without an interval where those are too few."""

    arm: str
    metric: str
    n: int
    interval: Interval | None
    verdict: Verdict | None


@dataclass(frozen=True)
class Measured:
    """An arm with all that it takes to set it against another."""

    row: Row
    scores: tuple[Score, ...]
    churn: dict[str, Matrix]
    """By measure, [runs, runs]."""
    test_rows: str
    """Digest of what was predicted: ids, positions, labels and number of classes."""

    @property
    def seeds(self) -> list[int]:
        """One per run; empty for an ensemble over runs, which has none."""
        return [score.seed for score in self.scores if score.seed is not None]


def measure(arm: str, models: Sequence[Model], incumbent: Incumbent | None, *, one_model: bool = True) -> Measured:
    """Score every model of an arm, and the arm."""
    scores = tuple(_score(arm, model, incumbent) for model in models)
    tests = [model.test for model in models]
    matrices = {"mean_abs_difference": difference_matrix(tests), "flips": flips_matrix(tests)}
    pairs = len(models) > 1
    n = len(models)
    row = Row(
        arm=arm,
        runs=n,
        validation_log_loss=mean(score.validation_log_loss for score in scores),
        accuracy=mean(score.accuracy for score in scores),
        log_loss=mean(score.log_loss for score in scores),
        mean_abs_difference=float(matrices["mean_abs_difference"].sum()) / (n * (n - 1)) if pairs else None,
        flips=float(matrices["flips"].sum()) / (n * (n - 1)) if pairs else None,
        seconds=mean(score.seconds for score in scores),
        bytes_exchanged=sum(score.bytes_exchanged for score in scores),
        calibration_error=mean(score.calibration_error for score in scores),
        confidence_gap=mean(score.confidence_gap for score in scores),
        diversity_flips=_mean(scores, lambda score: score.diversity_flips),
        diversity_kl_nats=_mean(scores, lambda score: score.diversity_kl_nats),
        incumbent_mean_abs_difference=_mean(scores, lambda score: score.incumbent_mean_abs_difference),
        incumbent_flips=_mean(scores, lambda score: score.incumbent_flips),
        one_model=one_model,
    )
    return Measured(row, scores, matrices, tests[0].digest)


def differences(arm: Measured, baseline: Measured) -> list[Difference]:
    """In every metric of `LOWER_IS_BETTER`, paired by seed (see `paired`); none for an arm without seeds."""
    if not arm.seeds or not baseline.seeds:
        return []
    common = len(set(arm.seeds) & set(baseline.seeds))
    found: list[Difference] = []
    for metric, lower_is_better in LOWER_IS_BETTER.items():
        interval = _interval(metric, arm, baseline)
        judged = None if interval is None else verdict(interval, lower_is_better=lower_is_better)
        found.append(Difference(arm.row.arm, metric, common, interval, judged))
    return found


def _interval(metric: str, arm: Measured, baseline: Measured) -> Interval | None:
    if metric in arm.churn:
        return churn_interval(arm.churn[metric], arm.seeds, baseline.churn[metric], baseline.seeds)
    values = [by_seed(one.seeds, [getattr(score, metric) for score in one.scores]) for one in (arm, baseline)]
    return t_interval(paired_differences(*values))


def _score(arm: str, model: Model, incumbent: Incumbent | None) -> Score:
    calibrated, among = calibration(model.test), model.diversity
    deployed = None if incumbent is None or incumbent.is_relative(model) else incumbent.test
    return Score(
        arm=arm,
        run=None if model.run is None else model.run.job_id,
        seed=model.seed,
        replica=model.replica,
        validation_log_loss=log_loss(model.validation),
        accuracy=accuracy(model.test),
        log_loss=log_loss(model.test),
        calibration_error=calibrated.error,
        confidence_gap=calibrated.confidence_gap,
        seconds=model.seconds,
        bytes_exchanged=model.bytes_exchanged,
        diversity_flips=None if among is None else among.flips,
        diversity_kl_nats=None if among is None else among.kl_nats,
        incumbent_mean_abs_difference=None if deployed is None else mean_abs_difference(model.test, deployed),
        incumbent_flips=None if deployed is None else flips(model.test, deployed),
        curve=model.curve,
    )


def _mean(scores: Sequence[Score], value: Callable[[Score], float | None]) -> float | None:
    known = [known for known in map(value, scores) if known is not None]
    return mean(known) if known else None
