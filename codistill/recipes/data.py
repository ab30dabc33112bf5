"""From the name of a data set in a spec to the data set."""

from __future__ import annotations

from collections.abc import Sequence

from codistill.data.catalog import Dataset, find_dataset
from codistill.data.home import DataError
from codistill.recipes.base import RecipeUnavailable


def dataset_of(recipe: str, name: str, facts: Sequence[str]) -> Dataset:
    """The data set `name`, whose description states these `facts`. Raises `RecipeUnavailable`, which says how to get
    it, when it is not there or is of another layout."""
    try:
        found = find_dataset(name)
    except DataError as error:
        raise RecipeUnavailable(f"recipe '{recipe}': {error}") from None
    missing = [fact for fact in facts if fact not in found.card.facts]
    if missing:
        raise RecipeUnavailable(
            f"recipe '{recipe}' cannot use data set '{name}' ({found.card.title}): its description lacks the facts"
            f" {', '.join(missing)}"
        )
    return found
