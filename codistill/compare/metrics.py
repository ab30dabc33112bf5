"""What is measured of predictions. Pure; probabilities are [N, classes], N rows count alike, logarithms are natural."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean

import numpy as np

from codistill.compare.predictions import LOG_FLOOR, Floats, Predictions

CALIBRATION_BINS = 15
VALUES_AT_ONCE = 250_000


@dataclass(frozen=True)
class Calibration:
    """How far confidence, the probability of the most likely class, is from being right."""

    error: float
    """Expected calibration error (Guo et al. 2017): the rows are put into 15 bins of equal width by their confidence;
    |mean confidence - accuracy| of each bin, weighted by its share of the rows."""
    confidence_gap: float
    """Mean confidence less accuracy over all rows: positive when too sure, negative when not sure enough."""


@dataclass(frozen=True)
class Diversity:
    """How much models of one run differ, averaged over their pairs."""

    flips: float
    """Share of rows whose most likely class differs."""
    kl_nats: float
    """Kullback-Leibler divergence per row, mean of both directions."""


def accuracy(model: Predictions) -> float:
    """Share of rows whose most likely class is the label."""
    return float((model.choices == model.labels).mean())


def log_loss(model: Predictions) -> float:
    """Nats per row."""
    own = model.log_probabilities[np.arange(len(model.labels)), model.labels]
    return float(-np.maximum(own, LOG_FLOOR).mean(dtype=np.float64))


def calibration(model: Predictions) -> Calibration:
    """Bin i of 15 holds confidences in (i/15, (i+1)/15]."""
    confidence = np.exp(model.log_probabilities.max(-1), dtype=np.float64)
    surplus = confidence - (model.choices == model.labels)
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    # |sum over a bin| / N is |its mean| times its share of the rows.
    per_bin = np.bincount(bins, weights=surplus, minlength=CALIBRATION_BINS)
    return Calibration(float(np.abs(per_bin).sum() / len(surplus)), float(surplus.mean()))


def mean_abs_difference(one: Predictions, other: Predictions) -> float:
    """Churn: mean absolute difference of probabilities, over rows and classes (Anil et al. 2018, section 4)."""
    return float(np.abs(one.probabilities - other.probabilities).mean())


def flips(one: Predictions, other: Predictions) -> float:
    """Churn: share of rows whose most likely class differs."""
    return float((one.choices != other.choices).mean())


def symmetric_kl(one: Predictions, other: Predictions) -> float:
    """Mean over rows of (KL(one, other) + KL(other, one)) / 2, in nats."""
    p, q = one.log_probabilities.astype(np.float64), other.log_probabilities.astype(np.float64)
    difference = np.maximum(p, LOG_FLOOR) - np.maximum(q, LOG_FLOOR)
    return float(((np.exp(p) - np.exp(q)) * difference).sum(-1).mean() / 2)


def diversity(models: Sequence[Predictions]) -> Diversity | None:
    """Of the models of one run; None for fewer than two."""
    pairs = list(combinations(models, 2))
    if not pairs:
        return None
    return Diversity(mean(flips(*pair) for pair in pairs), mean(symmetric_kl(*pair) for pair in pairs))


def ensemble(models: Sequence[Predictions]) -> Predictions:
    """The mean of the models' distributions. The models must have predicted the same rows."""
    first, total = models[0], models[0].probabilities
    for model in models[1:]:
        total += model.probabilities
    log_mean = np.log(np.maximum(total / len(models), np.exp(LOG_FLOOR)))
    return Predictions(first.ids, first.positions, first.labels, log_mean.astype(np.float32))


def flips_matrix(models: Sequence[Predictions]) -> Floats:
    """`flips` of every pair: [n, n], symmetric, 0 on the diagonal."""
    choices = np.stack([model.choices for model in models])
    return (choices[:, None, :] != choices[None, :, :]).mean(-1)


def difference_matrix(models: Sequence[Predictions]) -> Floats:
    """`mean_abs_difference` of every pair: [n, n], symmetric, 0 on the diagonal."""
    rows, classes = models[0].log_probabilities.shape
    total = np.zeros((len(models), len(models)))
    # Some rows at a time: all models' probabilities of many classes would not fit beside each other.
    for part in np.array_split(np.arange(rows), max(1, rows * classes // VALUES_AT_ONCE)):
        probabilities = [np.exp(model.log_probabilities[part], dtype=np.float64) for model in models]
        for i, j in combinations(range(len(models)), 2):
            total[i, j] += np.abs(probabilities[i] - probabilities[j]).sum()
    return (total + total.T) / (rows * classes)
