"""Recipes that come with packages of their own, and a short way to write one.

A package declares its recipe as an entry point of the group `codistill.recipes`; a spec names it, with options:

    [recipe]
    kind = "installed"
    name = "moons"
    options = { noise = 0.2 }

The entry point is a function or class that takes the options as keyword arguments and returns a `Recipe`. What is
installed was chosen by whoever runs the machine, so a spec still holds names only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Literal, cast

import torch
from torch import Tensor, nn

from codistill import losses
from codistill.batch import Batch, Outputs
from codistill.data.split import Split, SplitName
from codistill.recipes.base import Recipe, RecipeUnavailable
from codistill.spec import Installed

GROUP = "codistill.recipes"


def installed_recipes() -> dict[str, metadata.EntryPoint]:
    """The recipes that installed packages declare, by name; none of them is imported."""
    return {entry.name: entry for entry in metadata.entry_points(group=GROUP)}


def open_installed(spec: Installed) -> Recipe:
    """The recipe of that name. Raises `RecipeUnavailable` when no package declares it or its package cannot be
    imported, and `ValueError` when it does not take the options."""
    known = installed_recipes()
    if spec.name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise RecipeUnavailable(
            f"no installed package declares a recipe '{spec.name}' (entry points of {GROUP}: {names});"
            " install its package on every node"
        )
    try:
        factory = known[spec.name].load()
    except Exception as error:
        raise RecipeUnavailable(
            f"recipe '{spec.name}' ({known[spec.name].value}) cannot be imported: {error}"
        ) from error
    try:
        return cast(Recipe, factory(**spec.options))
    except (TypeError, ValueError) as error:
        raise ValueError(f"recipe.options of '{spec.name}': {error}") from error


def label_loss(outputs: Outputs, batch: Batch) -> Tensor:
    """Cross-entropy of the labels."""
    return losses.cross_entropy(outputs["logits"], batch.y)


@dataclass(frozen=True)
class OwnRecipe:
    """A recipe put together from functions; everything that can be has a default."""

    classes: int
    build: Callable[[], nn.Module]
    """A fresh model: from a view [N, ...] to logits [N, classes], or to taps with `logits` among them."""
    read: Callable[[SplitName], Split]
    loss: Callable[[Outputs, Batch], Tensor] = label_loss
    unit: Literal["samples", "tokens"] = "samples"
    units_per_sample: int = 1
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    """What it takes to build the model again; stands in the export's `config.json`."""
    code: str = "# build the model with the package it comes from, then load model.safetensors into it"
    """What the export's card says about loading it."""
    digests: Mapping[str, str] = field(default_factory=dict[str, str])

    def build_model(self) -> nn.Module:
        return self.build()

    def split(self, name: SplitName) -> Split:
        return self.read(name)

    def example(self, samples: int) -> Batch:
        """Blank samples of the form of the first one for training."""
        split = self.read("train")
        first = split.read(split.ids[:1])

        def blank(tensor: Tensor) -> Tensor:
            return torch.zeros_like(tensor).expand(samples, *tensor.shape[1:]).contiguous()

        return Batch(blank(first.ids), blank(first.y), {name: blank(view) for name, view in first.views.items()})

    def task_loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        return self.loss(outputs, batch)

    def config(self) -> dict[str, object]:
        return {"classes": self.classes, **self.settings}

    def loading_code(self) -> str:
        return self.code

    def data_digests(self) -> Mapping[str, str]:
        return self.digests
