"""How the predictions of several networks become the one target that each of them is pulled towards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from codistill.spec.base import Spec


class MeanTarget(Spec):
    """The mean of the teachers' distributions, the student's own left out."""

    kind: Literal["mean"] = "mean"


class NaiveTarget(Spec):
    """For each sample, the network that knows its label best."""

    kind: Literal["naive"] = "naive"


class LinearTarget(Spec):
    """The mixture of the networks' logits that knows the labels best."""

    kind: Literal["linear"] = "linear"
    per: Literal["batch", "sample"] = "batch"
    """Whether all samples of a batch have one mixture in common, or each its own, which most often is one network."""


class MinLogitTarget(Spec):
    """Of each class, the least that any network puts it above the label."""

    kind: Literal["min_logit"] = "min_logit"


class GeneralTarget(Spec):
    """The networks' distributions, weighted by how they err, and err together, on samples that none trains on."""

    kind: Literal["general"] = "general"
    held_out: int = Field(default=500, ge=0)
    """Training samples that are held out, the same for every seed; with 0 the weights are even."""
    refresh_steps: int | None = Field(default=None, ge=1)
    """Steps between measurements; left out, `training.evaluate_interval_steps`. The paper has one in each epoch."""


class AttentionTarget(Spec):
    """The peers' distributions, mixed by attention over their features, which the student learns (OKDDip, Chen et al.
    2020)."""

    kind: Literal["attention"] = "attention"
    itself: bool = False
    """Whether the student's own prediction is in the mixture too, as in the paper: attention may then learn to listen
    to it alone, which leaves no term (`distill/own_attention`)."""


PeersTarget = Annotated[
    MeanTarget | NaiveTarget | LinearTarget | MinLogitTarget | AttentionTarget, Field(discriminator="kind")
]
CohortTarget = Annotated[NaiveTarget | LinearTarget | MinLogitTarget | GeneralTarget, Field(discriminator="kind")]


def why_nothing_to_attend(target: PeersTarget, *, most_heard: int) -> str | None:
    """Why attention would have no choice where no replica ever hears more than `most_heard` others at once, and what
    would be right; None when it has."""
    if not isinstance(target, AttentionTarget) or target.itself or most_heard > 1:
        return None
    return (
        "method.target 'attention' chooses among teachers, and exchange.topology with replicas.count lets no replica"
        " hear two at once; use topology 'all' and at least 3 replicas, or method.target.itself = true"
    )


def why_not_cut(target: PeersTarget | CohortTarget | None, *, accumulate: int, harm_guard: bool = False) -> str | None:
    """What keeps a batch from being trained on piece by piece for `target`, and what would be right; None when nothing
    does. Ranks, which have their pieces at the same time, find one mixture, and one trust, together."""
    if accumulate == 1:
        return None
    cuts = f"for the whole batch, which training.accumulate ({accumulate}) cuts; leave it at 1, or"
    if harm_guard:
        return f"method.harm_guard trusts a teacher more or less {cuts} leave out harm_guard"
    if isinstance(target, LinearTarget) and target.per == "batch":
        return f"method.target 'linear' has one mixture {cuts} use method.target.per = 'sample'"
    return None
