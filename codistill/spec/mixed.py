"""Replicas, or networks of one, of different models: what they have in common, to teach each other by samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from codistill.spec.recipes import Recipe

OF_THE_MODEL = {
    "digits": {"width", "batch_norm"},
    "images": {"model"},
    "text": {"width", "layers", "heads", "dropout"},
    "tabular": {"embedding", "width", "layers", "dropout"},
    "installed": {"options"},
}
"""Of each kind of recipe the keys in which replicas may differ; of an installed one views and classes are compared when
it is opened."""


def why_not_mixed(recipes: Sequence[Recipe], recipe: Recipe, replicas: int) -> str | None:
    """What keeps replicas of `recipes` from being trained as those of one job, and what would be right; None when
    nothing does."""
    if len(recipes) != replicas:
        return f"recipes lists {len(recipes)} and replicas.count is {replicas}; give one for each replica, or none"
    if recipes[0] != recipe:
        return "recipe is not the first of recipes, which is what replica 0 trains; leave one of them out"
    return _why_not_alike(recipes, recipe, "recipes", "recipes.0: replicas")


def why_not_beside(others: Sequence[Recipe], recipe: Recipe, nets: int) -> str | None:
    """What keeps networks of `others` from being trained beside one of `recipe`, and what would be right; None when
    nothing does."""
    if others and len(others) != nets - 1:
        return (
            f"method.others lists {len(others)} and method.nets is {nets}, the first of which trains recipe; give"
            f" {nets - 1}, one for each further network, or none"
        )
    return _why_not_alike(others, recipe, "method.others", "recipe: networks")


def _why_not_alike(others: Sequence[Recipe], recipe: Recipe, key: str, whose: str) -> str | None:
    common, may = _common_to(recipe), ", ".join(sorted(OF_THE_MODEL[recipe.kind]))
    for number, other in enumerate(others):
        differs = [name for name, value in _common_to(other).items() if common.get(name) != value]
        if differs:
            return (
                f"{key}.{number}.{differs[0]} is not that of {whose} learn from each other sample by sample, so what"
                f" they train may differ in {may} alone"
            )
    return None


def _common_to(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude=OF_THE_MODEL[recipe.kind])
