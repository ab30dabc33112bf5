"""What every recipe offers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from torch import Tensor, nn

from codistill.batch import Batch, Outputs
from codistill.data.split import Split, SplitName


class RecipeUnavailable(RuntimeError):
    """A recipe needs something that is not there; the message says how to get it."""


class Recipe(Protocol):
    """A model, its data, its loss. Opening one is cheap: data are looked at when a split is asked for."""

    @property
    def classes(self) -> int:
        """Classes of each prediction."""
        ...

    @property
    def unit(self) -> Literal["samples", "tokens"]:
        """What throughput is counted in."""
        ...

    @property
    def units_per_sample(self) -> int: ...

    def build_model(self) -> nn.Module:
        """A fresh model with random weights, from a view [N, ...] to taps, `logits` among them."""
        ...

    def split(self, name: SplitName) -> Split:
        """Raises `RecipeUnavailable` when the data are not there."""
        ...

    def example(self, samples: int) -> Batch:
        """A batch of the right shapes and types, made up; needs no data."""
        ...

    def task_loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The loss against the labels, a scalar."""
        ...

    def config(self) -> dict[str, object]:
        """What it takes to build the model again, for the export."""
        ...

    def loading_code(self) -> str:
        """Python that builds the model as `model` from `config.json` and `model.safetensors` of the working directory,
        with torch and safetensors alone; of a recipe that is installed, how to."""
        ...

    def data_digests(self) -> Mapping[str, str]:
        """Of each data set by name, a digest that changes with its content."""
        ...
