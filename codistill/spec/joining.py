"""Predictions joined by sample: where what somebody said of a sample once is of use later, or to another."""

from __future__ import annotations

from codistill.spec.combining import AttentionTarget, MeanTarget
from codistill.spec.exchange import Exchange, Predictions
from codistill.spec.methods import Codistillation, DataMode, Disjoint, Overlap
from codistill.spec.recipes import Images, Recipe


def augmentation_of(recipe: Recipe) -> str | None:
    """The key of the recipe by which a sample looks different each time; None where there is none. What an installed
    recipe does is not told here."""
    keys = ("shift_pixels", "flip") if isinstance(recipe, Images) else ()
    return next((key for key in keys if getattr(recipe, key)), None)


def why_not_cached(recipe: Recipe) -> str | None:
    """What keeps a teacher's predictions from being worked out once for each sample; None when nothing does."""
    if (key := augmentation_of(recipe)) is None:
        return None
    return (
        f"method.cache_predictions keeps one prediction for each sample, and recipe.{key} shows a sample in another"
        " random way each time; leave one of them out"
    )


def why_not_joined(
    currency: Predictions, exchange: Exchange, method: Codistillation, recipe: Recipe, data: DataMode
) -> str | None:
    """What keeps predictions from being joined by sample, and what would be right; None when nothing does."""
    if isinstance(method.target, AttentionTarget):
        return (
            "method.target 'attention' looks at the peers' features, and predictions have none; use"
            " exchange.currency.kind = 'weights', or another target"
        )
    if method.critics is not None:
        return (
            "method.critics look at the peers' feature maps, and predictions have none; use exchange.currency.kind ="
            " 'weights', or leave critics out"
        )
    if (key := augmentation_of(recipe)) is not None:
        return (
            f"recipe.{key} shows each replica a sample in another random way, and predictions are joined by sample"
            " alone; leave it out, or use exchange.currency.kind = 'weights'"
        )
    if isinstance(data, Disjoint) or (isinstance(data, Overlap) and data.ratio == 0):
        return (
            "data gives no sample to two replicas, and predictions are joined by sample; use data.kind = 'same_set', an"
            " 'overlap' with a ratio above 0, or exchange.currency.kind = 'weights'"
        )
    if exchange.precision != "fp32":
        return (
            f"exchange.precision '{exchange.precision}' is for weights, and predictions travel in float16; leave it out"
        )
    if exchange.max_lag_steps is not None:
        return (
            "exchange.max_lag_steps bounds the age of snapshots, and each prediction has an age of its own, about one"
            " pass over the data; leave it out, or bound that age with exchange.max_offset_steps"
        )
    if currency.form != "dense" and not isinstance(method.target, MeanTarget):
        return (
            f"method.target '{method.target.kind}' looks at each teacher's whole prediction; use"
            " exchange.currency.form = 'dense', which sends it, or method.target.kind = 'mean'"
        )
    return why_not_sampled(method) if currency.form == "sampled" else None


def why_not_sampled(method: Codistillation) -> str | None:
    """Why draws from a teacher's distribution would not be right in the mean for `method`, and what would be right;
    None where they are: its gradient has to be linear in the distribution."""
    if method.divergence not in ("cross_entropy", "kl"):
        return (
            f"method.divergence '{method.divergence}' needs the probability of every class, and"
            " exchange.currency.form 'sampled' sends that of few; use 'cross_entropy' or 'kl', or another form"
        )
    if method.temperature != 1:
        return (
            f"method.temperature {method.temperature:g} softens teachers, which samples of them do not allow; leave it"
            " out, or use another exchange.currency.form"
        )
    return None
