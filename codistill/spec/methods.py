"""Methods: how models teach each other. Data modes: which replica sees what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from codistill.spec.averaging import DiLoCo, LocalSgd
from codistill.spec.base import Divergence, Spec
from codistill.spec.cohorts import (
    Afd,
    BeYourOwnTeacher,
    CheapConvolutions,
    DeepMutualLearning,
    FeatureFusionLearning,
    Kdcl,
    Okddip,
    One,
)
from codistill.spec.combining import AttentionTarget, MeanTarget, PeersTarget
from codistill.spec.offline import ChurnReduction, Hints, KnowledgeDistillation
from codistill.spec.training import Constant, WeightSchedule

DEFAULT_BURN_IN_FRACTION = 0.4
"""Share of training before teachers are heard: about 0.41 in Anil et al.'s ImageNet run, 0.4 in later public code."""


class Solo(Spec):
    """Plain training: every replica on its own labels, nobody teaches. The control of every comparison."""

    kind: Literal["solo"] = "solo"


class Critics(Spec):
    """What brings the distribution of a replica's feature maps to that of its peers' (AFD, Chung et al. 2020)."""

    learning_rate: float = Field(default=2e-5, ge=0, le=1)
    """Of Adam, for features and critic; 0 leaves predictions alone."""
    weight_decay: float = Field(default=1e-4, ge=0, le=1)
    channels: int = Field(default=32, ge=1, le=4096)
    """Width that transitions bring the feature maps to, and critics look at."""


class Codistillation(Spec):
    """Replicas pulled towards the mean prediction of stale copies of their peers (Anil et al. 2018)."""

    kind: Literal["codistillation"] = "codistillation"
    weight: float = Field(default=1.0, ge=0, le=1000)
    """Factor of the distillation term; 0 gives the very run of `solo`, bit for bit."""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """Softens teacher and student alike; the term is scaled by its square."""
    divergence: Divergence = "cross_entropy"
    """What the term measures between the target and the student's prediction."""
    target: PeersTarget = MeanTarget()
    """What the predictions of the peers become: their `mean`, a mixture that `attention` learns, or, with the student's
    own prediction, one of KDCL's."""
    weight_schedule: WeightSchedule = Constant()
    """Of the weight, from the burn-in on: its step 0 is the first in which teachers are heard."""
    harm_guard: bool = False
    """Whether a teacher that knows the labels of a batch worse than the student counts less there."""
    critics: Critics | None = None
    """Left out, replicas learn from the predictions of their peers alone; given, from the distribution of their feature
    maps too, each through a critic of its own (`learning_rate`, `weight_decay`, `channels`)."""
    burn_in_steps: int | None = Field(default=None, ge=0)
    """Steps before teachers are heard; left out, 40 % of `training.steps`."""

    @model_validator(mode="after")
    def _temperature_is_used(self) -> Codistillation:
        if self.divergence == "logit_regression" and self.temperature != 1:
            raise ValueError("divergence 'logit_regression' compares logits, which have no temperature; leave it out")
        return self

    @model_validator(mode="after")
    def _peers_are_weighed_once(self) -> Codistillation:
        if self.harm_guard and not isinstance(self.target, MeanTarget):
            raise ValueError(
                f"harm_guard weighs peers in their mean, and target '{self.target.kind}' chooses among them by itself;"
                " leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _attention_has_what_it_learns_by(self) -> Codistillation:
        if isinstance(self.target, AttentionTarget) and self.divergence != "kl":
            raise ValueError(
                f"target 'attention' learns whom to listen to by the divergence 'kl', this is '{self.divergence}';"
                " use divergence = 'kl'"
            )
        return self


class LabelSmoothing(Spec):
    """Each replica on its own, pulled towards smoothed labels (Szegedy et al. 2016): what co-distillation is with a
    teacher that knows nothing but the label."""

    kind: Literal["label_smoothing"] = "label_smoothing"
    epsilon: float = Field(default=0.1, ge=0, le=1)
    """Probability taken off the label and spread evenly over the other classes. Szegedy et al. spread theirs over all
    classes: of K, this is (K - 1) / K of theirs."""
    weight: float = Field(default=1.0, ge=0, le=1000)
    """Factor of the smoothed term, which is added to the loss on the labels; 0 gives the very run of `solo`."""
    weight_schedule: WeightSchedule = Constant()
    """Of the weight, from the burn-in on: its step 0 is the first in which the term is added."""
    burn_in_steps: int = Field(default=0, ge=0)
    """Steps on the labels alone before the term is added."""


Method = Annotated[
    Solo
    | LabelSmoothing
    | Codistillation
    | KnowledgeDistillation
    | Hints
    | ChurnReduction
    | DeepMutualLearning
    | Kdcl
    | Afd
    | BeYourOwnTeacher
    | One
    | Okddip
    | FeatureFusionLearning
    | CheapConvolutions
    | LocalSgd
    | DiLoCo,
    Field(discriminator="kind"),
]

Control = Literal["solo", "smoothing"]
"""An arm that a job trains beside its own replicas, to compare them with."""

Arm = Literal["replica", "solo", "smoothing"]
"""The job's own replicas, or one of its control arms; a replica's name begins with it."""


class SameOrder(Spec):
    """All replicas see the same samples in the same order (for equality tests)."""

    kind: Literal["same_order"] = "same_order"


class SameSet(Spec):
    """All replicas see the whole training set, each in its own order."""

    kind: Literal["same_set"] = "same_set"


class Overlap(Spec):
    """A part of the training set is common to all replicas; the rest is dealt out, each sample to one of them."""

    kind: Literal["overlap"] = "overlap"
    ratio: float = Field(default=0.4, ge=0, le=1)
    """Share of the training set that all see: 0 is `disjoint`, 1 is `same_set`."""


class Disjoint(Spec):
    """The training set is cut into as many parts as there are replicas; each sees its own only."""

    kind: Literal["disjoint"] = "disjoint"


DataMode = Annotated[SameOrder | SameSet | Overlap | Disjoint, Field(discriminator="kind")]
