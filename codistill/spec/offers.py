"""What a recipe offers, and what a method needs of it: known from the spec alone, so that what does not fit is refused
before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from codistill.spec.cohorts import Afd, BeYourOwnTeacher, CheapConvolutions, FeatureFusionLearning, Okddip, One
from codistill.spec.combining import AttentionTarget
from codistill.spec.methods import Codistillation, Critics, Method
from codistill.spec.offline import Hints
from codistill.spec.recipes import Cnn, Digits, Images, Installed, Mlp, Recipe, ResNet, Tabular, Text


@dataclass(frozen=True)
class Offer:
    """Of a recipe's model and data."""

    stages: int
    """Places where the model can be looked into or cut, the last of them before its head."""
    maps: bool
    """Whether what the last stage gives has places side by side, [channels, height, width]."""
    augmented: bool
    """Whether a sample looks different at every step."""
    features: int
    """Width of what the model's head is shown."""
    labels_per_sample: int
    installed: bool = False
    """Whether it is a package's own, of which nothing is known before it is opened."""


def offer_of(recipe: Recipe) -> Offer:
    """What `recipe` offers."""
    match recipe:
        case Digits():
            return Offer(stages=2, maps=True, augmented=False, features=8 * recipe.width, labels_per_sample=1)
        case Images(model=model):
            return Offer(
                stages=_stages(model),
                maps=not isinstance(model, Mlp),
                augmented=recipe.flip or recipe.shift_pixels > 0,
                features=model.width if isinstance(model, Mlp) else 4 * model.width,
                labels_per_sample=1,
            )
        case Text(layers=layers, width=width):
            return Offer(layers, maps=False, augmented=False, features=width, labels_per_sample=recipe.context)
        case Tabular(layers=layers, width=width):
            return Offer(layers, maps=False, augmented=False, features=width, labels_per_sample=1)
        case Installed():
            return Offer(stages=0, maps=False, augmented=False, features=0, labels_per_sample=0, installed=True)
        case _:
            assert_never(recipe)


def why_not_offered(method: Method, recipe: Recipe) -> str | None:
    """Why `recipe` has not what `method` needs, and what would help; None when it has, or when that shows only once
    the recipe is opened."""
    offer, needed = offer_of(recipe), stages_needed(method)
    if offer.installed or offer.stages >= needed:
        return None
    split = (
        " or lower method.split" if isinstance(method, One | Okddip | FeatureFusionLearning) and method.split else ""
    )
    return (
        f"method '{method.kind}' needs a model of at least {needed} stages, that of recipe '{recipe.kind}' has"
        f" {offer.stages}; {_remedy(recipe)}{split}"
    )


def why_not_seen(method: Method, recipes: Sequence[Recipe]) -> str | None:
    """What keeps replicas of different `recipes` from looking into each other's models, and what would be right; None
    when nothing does, or when that shows only once they are opened."""
    first, *others = [offer_of(recipe) for recipe in recipes]
    target, critics = getattr(method, "target", None), getattr(method, "critics", None)
    for number, other in enumerate(others, 1):
        if critics is not None and other.maps != first.maps:
            gives = {True: "maps", False: "vectors"}
            return (
                f"recipes.{number} has a model whose last stage gives {gives[other.maps]} and recipes.0 one that gives"
                f" {gives[first.maps]}, and method.critics compare them; use models of one kind, or leave critics out"
            )
        if isinstance(target, AttentionTarget) and other.features != first.features:
            return (
                f"recipes.{number} has a model of {other.features} features and recipes.0 one of {first.features}, and"
                " method.target 'attention' compares them; make them equal, or use another target"
            )
    return None


def stages_needed(method: Method) -> int:
    """Of how many stages a model has to be for `method`; 0 where it is not looked into."""
    match method:
        case BeYourOwnTeacher():
            return 2
        case One() | Okddip() | FeatureFusionLearning():
            return (1 if method.split is None else method.split) + 1
        case Afd() | CheapConvolutions() | Hints() | Codistillation(critics=Critics()):
            return 1
        case _:
            return 0


def _stages(model: Mlp | Cnn | ResNet) -> int:
    match model:
        case Mlp():
            return model.layers
        case Cnn():
            return 2
        case ResNet():
            return 3


def _remedy(recipe: Recipe) -> str:
    match recipe:
        case Images(model=Mlp()):
            return "raise recipe.model.layers"
        case Images(model=Cnn()):
            return "use recipe.model.kind = 'resnet', which has 3"
        case Text() | Tabular():
            return "raise recipe.layers"
        case _:
            return "use a recipe whose model has more"
