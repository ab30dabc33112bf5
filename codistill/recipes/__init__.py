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
from codistill.spec import Recipe as RecipeChoice

__all__ = ["Recipe", "RecipeUnavailable", "open_recipe", "recipe_of"]


def open_recipe(spec: JobSpec) -> Recipe:
    """The recipe of a job; see `recipe_of`."""
    return recipe_of(spec.recipe)


def recipe_of(choice: RecipeChoice) -> Recipe:
    """The recipe of this name and settings. Raises `RecipeUnavailable` when something is not installed, `ValueError`
    when an installed recipe does not take its options."""
    match choice:
        case Digits():
            return DigitsRecipe(choice)
        case Images():
            return ImagesRecipe(choice)
        case Text():
            return TextRecipe(choice)
        case Tabular():
            return TabularRecipe(choice)
        case Installed():
            return open_installed(choice)
        case _:
            assert_never(choice)
