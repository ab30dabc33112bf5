"""Recipes: what is trained on what. One file each; a recipe declares its model, data, task loss and evaluation."""

from __future__ import annotations

from typing import assert_never

from codistill.recipes.base import Recipe, RecipeUnavailable
from codistill.recipes.digits import DigitsRecipe
from codistill.recipes.images import ImagesRecipe
from codistill.recipes.own import open_installed
from codistill.recipes.tabular import TabularRecipe
from codistill.recipes.text import TextRecipe
from codistill.spec import Digits, Images, Installed, JobSpec, Tabular, Text

__all__ = ["Recipe", "RecipeUnavailable", "open_recipe"]


def open_recipe(spec: JobSpec) -> Recipe:
    """The recipe a spec names. Raises `RecipeUnavailable` when something is not installed, `ValueError` when an
    installed recipe does not take its options."""
    match spec.recipe:
        case Digits():
            return DigitsRecipe(spec.recipe)
        case Images():
            return ImagesRecipe(spec.recipe)
        case Text():
            return TextRecipe(spec.recipe)
        case Tabular():
            return TabularRecipe(spec.recipe)
        case Installed():
            return open_installed(spec.recipe)
        case _:
            assert_never(spec.recipe)
