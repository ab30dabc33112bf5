"""What one model predicted on one split, as a replica wrote it down; read without Python lists, since a file may hold
half a million rows, or tens of thousands with hundreds of classes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from codistill.run_dir import RunDir

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LOG_FLOOR = -690.0
"""Log-probabilities are taken to be no smaller (nats): a single probability of 0 must not make a mean infinite."""
SUM_TOLERANCE = 1e-3


class NothingToCompare(ValueError):
    """A run has not ended, runs were tested on different samples, or a file of predictions holds no distributions."""


@dataclass(frozen=True)
class Predictions:
    """Of one model on one split, ascending by (id, position): ids, positions and labels [N], log-probabilities
    [N, classes] in nats.

    `positions` tells apart the places of one sample that are predicted one by one, as in a language model; for an
    ordinary classifier all are 0.
    """

    ids: Ints
    positions: Ints
    labels: Ints
    log_probabilities: npt.NDArray[np.floating[Any]]

    @property
    def probabilities(self) -> Floats:
        """[N, classes]."""
        return np.exp(self.log_probabilities, dtype=np.float64)

    @property
    def choices(self) -> Ints:
        """The most likely class of every row [N]; of several equally likely ones the first."""
        return self.log_probabilities.argmax(-1)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of what was to be predicted: the same for all models of one split of one data set."""
        digest = hashlib.sha256(str(self.log_probabilities.shape).encode())
        for rows in (self.ids, self.positions, self.labels):
            digest.update(rows.tobytes())
        return digest.hexdigest()

    def same_rows(self, other: Predictions) -> bool:
        """Whether both are about the same rows with the same labels and number of classes."""
        return self.log_probabilities.shape == other.log_probabilities.shape and all(
            np.array_equal(getattr(self, key), getattr(other, key)) for key in ("ids", "positions", "labels")
        )


def read_predictions(run: RunDir, fence: int, replica: str, split: str) -> Predictions:
    """What `replica` predicted at the end of attempt `fence`.

    Raises `NothingToCompare` when it did not end, or when the file holds anything but one distribution per row.
    """
    path = run.replica(fence, replica) / "predictions" / f"{split}.parquet"
    if not path.exists():
        raise NothingToCompare(f"{path} is missing: {replica} of {run.job_id} has not ended; wait, or leave it out")
    return _from_table(pq.read_table(path), path)


def _from_table(table: pa.Table, path: Path) -> Predictions:
    ids = _whole_numbers(table, "sample_id")
    # Files from before positions were written hold one row per sample.
    positions = _whole_numbers(table, "position") if "position" in table.column_names else np.zeros_like(ids)
    order = np.lexsort((positions, ids))
    predictions = Predictions(
        ids[order], positions[order], _whole_numbers(table, "label")[order], _matrix(table, path)[order]
    )
    _refuse_what_is_no_distribution(predictions, path)
    return predictions


def _whole_numbers(table: pa.Table, column: str) -> Ints:
    return table[column].to_numpy().astype(np.int64)


def _matrix(table: pa.Table, path: Path) -> npt.NDArray[np.float32]:
    """The column of lists, of fixed or of varying size, as [N, classes]."""
    column = table["log_probabilities"].combine_chunks()
    if len(column) == 0:
        raise NothingToCompare(f"{path} holds no rows; a split needs at least one sample; leave the run out")
    fixed = pa.types.is_fixed_size_list(column.type)
    lengths = np.array([column.type.list_size]) if fixed else np.diff(column.offsets.to_numpy())
    values = column.flatten().to_numpy(zero_copy_only=False)
    classes = int(lengths[0])
    if classes == 0 or (lengths != classes).any() or len(values) != len(column) * classes:
        raise NothingToCompare(
            f"{path}: the lists in log_probabilities are missing, empty or of different lengths; leave the run out"
        )
    return values.reshape(len(column), classes)


def _refuse_what_is_no_distribution(predictions: Predictions, path: Path) -> None:
    ids, positions, labels = predictions.ids, predictions.positions, predictions.labels
    twice = (ids[1:] == ids[:-1]) & (positions[1:] == positions[:-1])
    if twice.any():
        raise NothingToCompare(f"{path}: sample {ids[1:][twice][0]} stands there more than once; leave the run out")
    classes = predictions.log_probabilities.shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise NothingToCompare(
            f"{path}: labels reach from {labels.min()} to {labels.max()}, classes are {classes}; leave the run out"
        )
    off = ~(
        np.abs(np.exp(predictions.log_probabilities).sum(-1, dtype=np.float64) - 1) <= SUM_TOLERANCE
    )  # NaN is off, too
    if off.any():
        raise NothingToCompare(
            f"{path}: {off.sum()} of {len(ids)} rows are no distributions, first that of sample {ids[off][0]};"
            " log_probabilities must be the logarithms of numbers that add up to 1"
        )
