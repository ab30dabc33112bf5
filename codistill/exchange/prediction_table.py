"""What a reader holds of one peer: its newest prediction for each sample.

Memory is samples x bytes of a row, at most: what is newer takes the place of what is older. A peer that is restarted
goes on where it was; what it said before stays until it is said anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from codistill.exchange.predictions import Columns, Form, Rows, joined, no_rows, unpacked


@dataclass(frozen=True)
class Answers:
    """What a peer is known to have said of N samples."""

    log_probabilities: Tensor
    """[N, *places, classes] float32; uniform where nothing is known."""
    found: Tensor
    """[N] bool: whether anything is known."""
    made_at: Tensor
    """[N] int64: the peer's step when it said so; 0 where nothing is known."""
    log_labels: Tensor | None = None
    """[N, *places] float32: log-probabilities of the labels (0 where nothing is known), where those of the classes do
    not tell them: of `sampled`."""


class PredictionTable:
    """Rows, sorted by sample id; a look-up is a binary search for all ids at once."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._rows = no_rows(form)

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, rows: Rows) -> None:
        """Know `rows` from now on, which are newer than all before. The first pass over the data makes room for what
        was never seen; after it, rows are written in place."""
        rows = rows.newest()
        at, known = self._places_of(rows.ids)
        self._rows.made_at[at[known]] = rows.made_at[known]
        for name, values in self._rows.columns.items():
            values[at[known]] = rows.columns[name][known]
        if not known.all():
            self._rows = joined(self._form, [self._rows, rows.at(~known)]).newest()

    def look_up(self, ids: Tensor) -> Answers:
        """For samples `ids` [N] int64, on the CPU."""
        at, known = self._places_of(ids.numpy())
        found, made_at = torch.from_numpy(known), torch.zeros(len(ids), dtype=torch.int64)
        rows = self._rows.at(at[known])
        made_at[found] = torch.from_numpy(rows.made_at)
        known_of = unpacked(self._form, rows.columns)
        log_labels = None
        if (told := rows.columns.get("log_labels")) is not None:
            log_labels = torch.zeros(len(ids), *self._form.places)
            log_labels[found] = torch.from_numpy(told.astype(np.float32)).reshape(-1, *self._form.places)
        if known.all():
            return Answers(known_of, found, made_at, log_labels)
        said = torch.full((len(ids), *self._form.places, self._form.classes), -math.log(self._form.classes))
        said[found] = known_of
        return Answers(said, found, made_at, log_labels)

    def tensors(self) -> dict[str, Tensor]:
        """Everything, for a checkpoint."""
        return tensors_of(self._rows)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        self._rows = rows_of(tensors)

    def _places_of(self, ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """Where each id stands or would stand, and whether it is there."""
        at = np.searchsorted(self._rows.ids, ids)
        known = at < len(self._rows)
        known[known] = self._rows.ids[at[known]] == ids[known]
        return at, known


def tensors_of(rows: Rows) -> dict[str, Tensor]:
    """As tensors by name, without a copy."""
    arrays = {"ids": rows.ids, "made_at": rows.made_at, **rows.columns}
    return {name: torch.from_numpy(np.require(array, requirements=["C", "W"])) for name, array in arrays.items()}


def rows_of(tensors: Mapping[str, Tensor]) -> Rows:
    """What `tensors_of` was given, copies."""
    arrays = {name: tensor.numpy().copy() for name, tensor in tensors.items()}
    columns: Columns = {name: array for name, array in arrays.items() if name not in ("ids", "made_at")}
    return Rows(arrays["ids"], arrays["made_at"], columns)
