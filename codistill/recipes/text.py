"""`text`: a language model over the bytes of a text."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Literal, cast

import torch
from torch import Tensor, nn

from codistill import losses
from codistill.batch import Batch, Outputs
from codistill.data.card import PARTS
from codistill.data.catalog import Dataset
from codistill.data.split import SplitName
from codistill.data.windows import ByteWindows
from codistill.recipes.code import loading_code
from codistill.recipes.data import dataset_of
from codistill.recipes.models import transformer
from codistill.spec import Text


class TextRecipe:
    """See the module and `codistill.recipes.base.Recipe`. A sample is a window of `context` bytes; each of its places
    is a prediction of the byte after it."""

    classes = transformer.BYTES
    unit: Literal["tokens"] = "tokens"

    def __init__(self, spec: Text) -> None:
        self._spec = spec

    @cached_property
    def _data(self) -> Dataset:
        return dataset_of("text", self._spec.data, ("text_bytes",))

    @property
    def units_per_sample(self) -> int:
        return self._spec.context

    def build_model(self) -> nn.Module:
        return transformer.build(self.config())

    def split(self, name: SplitName) -> ByteWindows:
        sizes = cast(dict[str, int], self._data.fact("text_bytes"))
        before = sum(sizes[part] for part in PARTS[: PARTS.index(name)])
        size = self._spec.train_size if name == "train" else self._spec.evaluation_size
        return ByteWindows(self._data.paths(name), before, sizes[name], self._spec.context, size, name)

    def example(self, samples: int) -> Batch:
        ids, text = torch.zeros(samples, dtype=torch.int64), torch.zeros(samples, self._spec.context, dtype=torch.uint8)
        return Batch(ids=ids, y=text.long(), views={"x": text})

    def task_loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        return losses.cross_entropy(outputs["logits"], batch.y)

    def config(self) -> dict[str, object]:
        return {
            "architecture": "byte_transformer",
            "model": self._spec.model_dump(include={"context", "width", "layers", "heads", "dropout"}),
            "input": {"shape": ["N", "L"], "dtype": "uint8", "range": [0, 255], "longest": self._spec.context},
        }

    def loading_code(self) -> str:
        return loading_code(transformer, "bytes [N, L] to logits [N, L, 256] of the byte after each")

    def data_digests(self) -> Mapping[str, str]:
        return {self._spec.data: self._data.digest}
