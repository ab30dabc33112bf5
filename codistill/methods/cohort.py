"""Networks beside each other in one learner: of the job's recipe, or with others of another model among them."""

from __future__ import annotations

from collections.abc import Mapping

from codistill.exported import mismatch
from codistill.phase import Learner
from codistill.recipes import Recipe, recipe_of
from codistill.spec import DeepMutualLearning, Kdcl


def networks(method: DeepMutualLearning | Kdcl, recipe: Recipe) -> dict[str, Recipe]:
    """What each of `method.nets` trains, by its name; the first, `net0`, the job's `recipe`, which is exported.

    Raises `ValueError` for one that knows other classes, or is shown other views.
    """
    others = [recipe_of(other) for other in method.others] or [recipe] * (method.nets - 1)
    for number, other in enumerate(others):
        if (problem := mismatch(other, recipe)) is not None:
            raise ValueError(f"method.others.{number}: the network {problem}")
    return {f"net{number}": each for number, each in enumerate([recipe, *others])}


def built(nets: Mapping[str, Recipe]) -> Learner:
    """A part for each of them, the first as it would be by itself."""
    return Learner({net: recipe.build_model() for net, recipe in nets.items()})
