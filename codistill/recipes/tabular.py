"""`tabular`: rows of categories and numbers with a yes-or-no label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from codistill import losses
from codistill.batch import Batch, Outputs
from codistill.data.catalog import Dataset
from codistill.data.parquet import Columns, ParquetRows, ParquetSplit
from codistill.data.split import SplitName
from codistill.randomness import Name
from codistill.recipes.code import loading_code
from codistill.recipes.data import dataset_of
from codistill.recipes.models import table
from codistill.spec import Tabular


class TabularRecipe:
    """See the module and `codistill.recipes.base.Recipe`. Columns are in alphabetical order, categories first."""

    classes = 2
    unit: Literal["samples"] = "samples"
    units_per_sample = 1

    def __init__(self, spec: Tabular) -> None:
        self._spec = spec

    @cached_property
    def _data(self) -> Dataset:
        return dataset_of("tabular", self._spec.data, ("categories", "numbers", "label"))

    @property
    def _categories(self) -> dict[str, list[str]]:
        return dict(sorted(cast(dict[str, list[str]], self._data.fact("categories")).items()))

    @property
    def _numbers(self) -> dict[str, dict[str, float]]:
        return dict(sorted(cast(dict[str, dict[str, float]], self._data.fact("numbers")).items()))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the model is shown."""
        return (*self._categories, *self._numbers)

    def build_model(self) -> nn.Module:
        return table.build(self.config())

    def split(self, name: SplitName) -> ParquetSplit:
        label, entry = str(self._data.fact("label")), self._data.split(name)
        decoder = Decoder(self.columns, label)
        rows = ParquetRows(self._data.paths(name), entry.first_id, (*self.columns, label), decoder)
        size = self._spec.train_size if name == "train" else self._spec.evaluation_size
        return ParquetSplit(rows, entry.rows, assemble, size, name)

    def example(self, samples: int) -> Batch:
        zeros = torch.zeros(samples, dtype=torch.int64)
        return Batch(ids=zeros, y=zeros, views={"x": torch.zeros(samples, len(self.columns))})

    def task_loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        return losses.cross_entropy(outputs["logits"], batch.y)

    def config(self) -> dict[str, object]:
        numbers = self._numbers.values()
        data = {
            "categories": [len(names) for names in self._categories.values()],
            "mean": [number["mean"] for number in numbers],
            "std": [number["std"] for number in numbers],
        }
        return {
            "architecture": "table_net",
            "model": {**data, **self._spec.model_dump(include={"embedding", "width", "layers", "dropout"})},
            "categories": self._categories,
            "input": {"shape": ["N", len(self.columns)], "dtype": "float32", "columns": list(self.columns)},
        }

    def loading_code(self) -> str:
        return loading_code(table, "rows [N, columns] of codes and numbers, see config.json, to logits [N, 2]")

    def data_digests(self) -> Mapping[str, str]:
        return {self._spec.data: self._data.digest}


@dataclass(frozen=True)
class Decoder:
    """From columns to one table of float32 [n, columns], in which codes up to 2^24 are exact, and labels."""

    columns: tuple[str, ...]
    label: str

    def __call__(self, columns: Columns) -> Columns:
        x = np.stack([columns[name].astype(np.float32) for name in self.columns], axis=1)
        return {"x": x, "y": columns[self.label].astype(np.int64)}


def assemble(ids: Tensor, rows: Columns, stream: tuple[Name, ...] | None) -> Batch:
    """The batch; rows are not augmented."""
    return Batch(ids=ids, y=torch.from_numpy(rows["y"]), views={"x": torch.from_numpy(rows["x"])})
