"""Methods whose networks live in one replica: several that teach each other at every step, or one and its own exits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from codistill.spec.base import Spec
from codistill.spec.combining import CohortTarget, MinLogitTarget
from codistill.spec.recipes import Recipe
from codistill.spec.training import Constant, WeightSchedule


class DeepMutualLearning(Spec):
    """Several networks on the same batches, each pulled towards the fresh predictions of the others (Zhang et al.
    2018). The first is the one that is exported."""

    kind: Literal["deep_mutual_learning"] = "deep_mutual_learning"
    nets: int = Field(default=2, ge=2, le=16)
    others: tuple[Recipe, ...] = Field(default=(), max_length=15)
    """What each network after the first trains, where those are other models, such as a large one beside a small one:
    the recipe of the job but for its model. Left out, all train the recipe of the job."""
    order: Literal["simultaneous", "sequential"] = "simultaneous"
    """`sequential` updates one network after the other, each against what those before it have become."""
    form: Literal["pairwise", "ensemble"] = "pairwise"
    """The mean of the divergences from each of the others, or the divergence from their mean prediction (DML_e)."""
    weight: float = Field(default=1.0, ge=0, le=1000)
    """Factor of the distillation term; 0 trains each network as `solo` does."""
    temperature: float = Field(default=1.0, gt=0, le=100)


class Kdcl(Spec):
    """Several networks on the same samples, each in a view of its own, all pulled towards one target that is built from
    what they say (Guo et al. 2020). The first is the one that is exported."""

    kind: Literal["kdcl"] = "kdcl"
    nets: int = Field(default=2, ge=2, le=16)
    others: tuple[Recipe, ...] = Field(default=(), max_length=15)
    """What each network after the first trains, where those are other models, such as a large one beside a small one:
    the recipe of the job but for its model. Left out, all train the recipe of the job."""
    target: CohortTarget = MinLogitTarget()
    weight: float = Field(default=1.0, ge=0, le=1000)
    """Factor of the distillation term; 0 trains each network as `solo` does."""
    temperature: float = Field(default=2.0, gt=0, le=100)
    own_views: bool = True
    """Whether a recipe that augments shows a sample to each network in another random way."""


class Afd(Spec):
    """Mutual learning of logits, and of the distribution of feature maps through critics (Chung et al. 2020): network
    k + 1 learns from network k, the first from the last. The first is the one that is exported."""

    kind: Literal["afd"] = "afd"
    nets: int = Field(default=2, ge=2, le=16)
    weight: float = Field(default=1.0, ge=0, le=1000)
    """Factor of the distillation term on logits."""
    temperature: float = Field(default=3.0, gt=0, le=100)
    adversarial_learning_rate: float = Field(default=2e-5, ge=0, le=1)
    """Of Adam, for features and critics; 0 leaves mutual learning of logits alone."""
    adversarial_weight_decay: float = Field(default=1e-4, ge=0, le=1)
    channels: int = Field(default=32, ge=1, le=4096)
    """Width that transitions bring the feature maps to, and critics look at."""


class BeYourOwnTeacher(Spec):
    """One network with exits between its stages, which the last one teaches (Zhang et al. 2019)."""

    kind: Literal["be_your_own_teacher"] = "be_your_own_teacher"
    label_weight: float = Field(default=0.7, ge=0, le=1000)
    """Factor of each early exit's loss on the labels."""
    weight: float = Field(default=0.3, ge=0, le=1000)
    """Factor of each early exit's distillation term."""
    temperature: float = Field(default=3.0, gt=0, le=100)
    feature_weight: float = Field(default=0.07, ge=0, le=1000)
    """Factor of the mean squared distance between each early exit's features and the last ones."""


class One(Spec):
    """Branches of one network behind stages in common, taught by a mixture of themselves that a gate chooses for each
    sample (Lan et al. 2018). The first branch is the one that is exported."""

    kind: Literal["one"] = "one"
    branches: int = Field(default=3, ge=2, le=16)
    split: int | None = Field(default=None, ge=1, le=95)
    """Stages that all branches have in common; left out, all but the last."""
    label_weight: float = Field(default=1.0, ge=0, le=1000)
    """Factor of the losses on the labels of the other branches and of the mixture."""
    weight: float = Field(default=1.0, ge=0, le=1000)
    """Factor of the distillation terms; 0, with a label weight of 0, gives the very run of `solo`."""
    weight_schedule: WeightSchedule = Constant()
    """Of the weight. The paper's code ramps it up over the first 27 % of the training."""
    temperature: float = Field(default=3.0, gt=0, le=100)


class Okddip(Spec):
    """Networks each pulled towards a mixture of all that attention chooses for it, and a leader pulled towards their
    mean (Chen et al. 2020). The leader is the one that is exported."""

    kind: Literal["okddip"] = "okddip"
    nets: int = Field(default=4, ge=2, le=16)
    """The leader and its peers."""
    split: int | None = Field(default=None, ge=0, le=95)
    """Stages that all networks have in common: left out, all but the last; 0 makes them networks of their own."""
    label_weight: float = Field(default=1.0, ge=0, le=1000)
    """Factor of the peers' losses on the labels."""
    weight: float = Field(default=1.0, ge=0, le=1000)
    """Factor of the distillation terms; 0, with a label weight of 0, gives the very run of `solo`."""
    weight_schedule: WeightSchedule = Constant()
    """Of the weight. The paper's code ramps it up over the first 27 % of the training."""
    temperature: float = Field(default=3.0, gt=0, le=100)


class FeatureFusionLearning(Spec):
    """Networks and a classifier on all of their last feature maps side by side: their mean teaches it, and it teaches
    them (Kim et al. 2020). The first network is the one that is exported."""

    kind: Literal["feature_fusion_learning"] = "feature_fusion_learning"
    nets: int = Field(default=2, ge=2, le=16)
    split: int | None = Field(default=None, ge=0, le=95)
    """Stages that all networks have in common: left out, all but the last; 0 makes them networks of their own."""
    label_weight: float = Field(default=1.0, ge=0, le=1000)
    """Factor of the losses on the labels of the other networks and of the fused classifier."""
    weight: float = Field(default=1.0, ge=0, le=1000)
    """Factor of the distillation terms; 0, with a label weight of 0, gives the very run of `solo`."""
    weight_schedule: WeightSchedule = Constant()
    """Of the weight. The paper's code ramps it up over the first 27 % of the training."""
    temperature: float = Field(default=3.0, gt=0, le=100)


class CheapConvolutions(Spec):
    """Networks side by side, taught by a classifier on all of their last feature maps that is trained with them (Xie et
    al. 2019): for models of cheap convolutions (`recipe.model.convolution`). The first network is exported."""

    kind: Literal["cheap_convolutions"] = "cheap_convolutions"
    nets: int = Field(default=4, ge=2, le=16)
    label_weight: float = Field(default=1.0, ge=0, le=1000)
    """Factor of the losses on the labels of the other networks and of the teacher."""
    weight: float = Field(default=1.0, ge=0, le=1000)
    """Factor of the distillation terms; 0, with a label weight of 0, gives the very run of `solo`."""
    weight_schedule: WeightSchedule = Constant()
    temperature: float = Field(default=4.0, gt=0, le=100)


NORMALISED = (One, FeatureFusionLearning, CheapConvolutions)
"""Methods that have a BatchNorm of their own: what it is shown in training has to be of two samples at least."""
