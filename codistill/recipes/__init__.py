"""Recipes: what is trained on what. One file each; a recipe declares its model, data, task loss and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, assert_never

from torch import Tensor, nn

from codistill.batch import Batch, Outputs
from codistill.phase import Replica
from codistill.recipes.digits import DigitsRecipe
from codistill.spec import DataMode, Digits, JobSpec


class Recipe(Protocol):
    """What every recipe offers."""

    @property
    def classes(self) -> int: ...

    def build_model(self) -> nn.Module:
        """A fresh model with random weights, from a view [N, ...] to taps, `logits` among them."""
        ...

    def training_batches(self, mode: DataMode, replica: Replica, batch_size: int) -> Callable[[int], Batch]:
        """From a step to its batch."""
        ...

    def validation(self) -> Iterable[Batch]: ...

    def test(self) -> Iterable[Batch]: ...

    def task_loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The loss against the labels, a scalar."""
        ...

    def config(self) -> dict[str, object]:
        """What it takes to build the model again, for the export."""
        ...

    def loading_code(self) -> str:
        """Python that builds the model as `model` from `config.json` and `model.safetensors` of the working directory,
        with torch and safetensors alone."""
        ...


def open_recipe(spec: JobSpec) -> Recipe:
    """The recipe a spec names, its data loaded. Raises `RecipeUnavailable` when something is not installed."""
    match spec.recipe:
        case Digits():
            return DigitsRecipe(spec.recipe)
        case _:
            assert_never(spec.recipe)
