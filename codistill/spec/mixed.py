"""Replicas of different models: what they must have in common, since they teach each other sample by sample."""

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
    common = _common_to(recipe)
    for number, other in enumerate(recipes):
        differs = [key for key, value in _common_to(other).items() if common.get(key) != value]
        if differs:
            may = ", ".join(sorted(OF_THE_MODEL[recipe.kind]))
            return (
                f"recipes.{number}.{differs[0]} is not that of recipes.0: replicas learn from each other sample by"
                f" sample, so recipes of a job may differ in {may} alone"
            )
    return None


def _common_to(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude=OF_THE_MODEL[recipe.kind])
