"""Several arms, each of independent runs, side by side. Reads what runs left behind; needs no torch.

In each run the replica to serve is the one with the lowest log loss on validation; only its predictions on the test set
are scored. Churn is measured between *independent* runs of an arm, never between the replicas of one run, which agree
by construction (Anil et al. 2018, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from codistill.run_dir import RunDir, read_json

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class NothingToCompare(ValueError):
    """A run has not ended, or runs were tested on different samples."""


@dataclass(frozen=True)
class Predictions:
    """Of one model on one split, ascending by sample id: ids [N], labels [N], probabilities [N, classes]."""

    ids: Ints
    labels: Ints
    probabilities: Floats

    @property
    def accuracy(self) -> float:
        return float((self.probabilities.argmax(-1) == self.labels).mean())

    @property
    def log_loss(self) -> float:
        """Nats per sample."""
        own = self.probabilities[np.arange(len(self.labels)), self.labels]
        return float(-np.log(np.maximum(own, 1e-30)).mean())


@dataclass(frozen=True)
class Row:
    """One arm. Accuracy, log loss and seconds are means over its runs."""

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


@dataclass(frozen=True)
class Comparison:
    """One row per arm, in the order given."""

    rows: tuple[Row, ...]

    @property
    def served(self) -> Row:
        """The arm to serve: lowest log loss on validation among those that are one model."""
        single = [row for row in self.rows if not row.arm.startswith("ensemble")]
        return min(single, key=lambda row: row.validation_log_loss)

    def as_json(self) -> dict[str, Any]:
        return {"rows": [vars(row) for row in self.rows], "served": self.served.arm}

    def as_text(self) -> str:
        head = ["arm", "accuracy", "log loss", "churn", "flips", "seconds", "exchanged"]
        lines = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines]
        text.insert(1, "-" * len(text[0]))
        return "\n".join(text)


def compare(arms: Mapping[str, Sequence[RunDir]], *, ensemble_of: str | None = None) -> Comparison:
    """Score every arm's runs on the test set; with `ensemble_of`, also the averaged predictions of that arm's runs.

    Raises `NothingToCompare` when a run has not succeeded or the runs were tested on different samples.
    """
    rows = [_row(arm, runs) for arm, runs in arms.items()]
    if ensemble_of is not None:
        rows.append(_ensemble_row(ensemble_of, arms[ensemble_of]))
    return Comparison(tuple(rows))


def mean_abs_difference(one: Predictions, other: Predictions) -> float:
    """Mean absolute difference of predicted probabilities, over samples and classes."""
    return float(np.abs(one.probabilities - other.probabilities).mean())


def flips(one: Predictions, other: Predictions) -> float:
    """Share of samples whose most likely class differs."""
    return float((one.probabilities.argmax(-1) != other.probabilities.argmax(-1)).mean())


def ensemble(models: Sequence[Predictions]) -> Predictions:
    """The mean of the models' distributions."""
    return Predictions(models[0].ids, models[0].labels, np.mean([m.probabilities for m in models], axis=0))


def read_predictions(run: RunDir, fence: int, replica: str, split: str) -> Predictions:
    """What `replica` predicted at the end of attempt `fence`; raises `NothingToCompare` when it did not end."""
    path = run.replica(fence, replica) / "predictions" / f"{split}.parquet"
    if not path.exists():
        raise NothingToCompare(f"{path} is missing: {replica} of {run.job_id} has not ended")
    table = pq.read_table(path).sort_by("sample_id")
    log_probabilities = np.array(table["log_probabilities"].to_pylist(), dtype=np.float64)
    return Predictions(table["sample_id"].to_numpy(), table["label"].to_numpy(), np.exp(log_probabilities))


# ---------------------------------------------------------------- one arm


@dataclass(frozen=True)
class _Served:
    validation: Predictions
    test: Predictions
    seconds: float
    bytes_exchanged: int


def _row(arm: str, runs: Sequence[RunDir]) -> Row:
    served = [_served(run) for run in runs]
    pairs = list(combinations([one.test for one in served], 2))
    if any(not np.array_equal(one.ids, other.ids) for one, other in pairs):
        raise NothingToCompare(f"the runs of arm '{arm}' were tested on different samples")
    return Row(
        arm=arm,
        runs=len(served),
        validation_log_loss=mean(one.validation.log_loss for one in served),
        accuracy=mean(one.test.accuracy for one in served),
        log_loss=mean(one.test.log_loss for one in served),
        mean_abs_difference=mean(mean_abs_difference(*pair) for pair in pairs) if pairs else None,
        flips=mean(flips(*pair) for pair in pairs) if pairs else None,
        seconds=mean(one.seconds for one in served),
        bytes_exchanged=sum(one.bytes_exchanged for one in served),
    )


def _ensemble_row(arm: str, runs: Sequence[RunDir]) -> Row:
    served = [_served(run) for run in runs]
    validation, test = ensemble([one.validation for one in served]), ensemble([one.test for one in served])
    return Row(
        arm=f"ensemble of {len(served)} {arm}",
        runs=1,
        validation_log_loss=validation.log_loss,
        accuracy=test.accuracy,
        log_loss=test.log_loss,
        mean_abs_difference=None,
        flips=None,
        seconds=sum(one.seconds for one in served),
        bytes_exchanged=sum(one.bytes_exchanged for one in served),
    )


def _served(run: RunDir) -> _Served:
    fence = (run.fences() or [0])[-1]
    result = read_json(run.result(fence)) if fence else None
    if result is None or result["outcome"] != "succeeded":
        state = "has not ended" if result is None else f"ended as {result['outcome']}"
        raise NothingToCompare(f"job {run.job_id} {state}; only runs that succeeded can be compared")
    ended = {name: entry for name, entry in result["replicas"].items() if entry["outcome"] == "succeeded"}
    validation = {name: read_predictions(run, fence, name, "validation") for name in ended}
    best = min(validation, key=lambda name: validation[name].log_loss)
    return _Served(
        validation=validation[best],
        test=read_predictions(run, fence, best, "test"),
        seconds=max(entry["seconds"] for entry in ended.values()),
        bytes_exchanged=sum(entry["bytes_received"] for entry in ended.values()),
    )


def _cells(row: Row) -> list[str]:
    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.2%}"

    return [
        row.arm,
        f"{row.accuracy:.2%}",
        f"{row.log_loss:.4f}",
        "–" if row.mean_abs_difference is None else f"{row.mean_abs_difference:.5f}",
        share(row.flips),
        f"{row.seconds:.1f}",
        _size(row.bytes_exchanged),
    ]


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
