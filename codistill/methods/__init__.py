"""Methods: how models teach each other. One file each, which reads like the method section of its paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from codistill.exported import mismatch
from codistill.methods import (
    afd,
    be_your_own_teacher,
    cheap_convolutions,
    churn_reduction,
    codistillation,
    deep_mutual_learning,
    diloco,
    feature_fusion_learning,
    hints,
    kdcl,
    knowledge_distillation,
    label_smoothing,
    local_sgd,
    okddip,
    one,
    solo,
)
from codistill.phase import Phase, Replica
from codistill.recipes import Recipe, open_recipe
from codistill.spec import (
    Afd,
    BeYourOwnTeacher,
    CheapConvolutions,
    ChurnReduction,
    Codistillation,
    DeepMutualLearning,
    DiLoCo,
    FeatureFusionLearning,
    Hints,
    JobSpec,
    Kdcl,
    KnowledgeDistillation,
    LabelSmoothing,
    LocalSgd,
    Okddip,
    One,
    Solo,
)


def phase_of(spec: JobSpec, replica: int, name: str) -> Phase:
    """The phase of that name of another replica, as that goes through it. Raises `ValueError` when its model is shown
    other views, or knows other classes."""
    its = spec.for_replica(replica)
    recipe = open_recipe(its)
    if (problem := mismatch(recipe, open_recipe(spec))) is not None:
        raise ValueError(f"recipes.{replica}: the model {problem}")
    phases = plan(its, recipe, Replica(replica, spec.replicas.count, spec.seed))
    return next(phase for phase in phases if phase.name == name)


def plan(spec: JobSpec, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """The phases that `replica` goes through, in order. Raises `ValueError` when the recipe has not what the method
    needs."""
    match spec.method:
        case Solo():
            return solo.plan(spec, recipe, replica)
        case LabelSmoothing() as method:
            return label_smoothing.plan(spec, method, recipe, replica)
        case Codistillation() as method:
            return codistillation.plan(spec, method, recipe, replica)
        case KnowledgeDistillation() as method:
            return knowledge_distillation.plan(spec, method, recipe, replica)
        case Hints() as method:
            return hints.plan(spec, method, recipe, replica)
        case ChurnReduction() as method:
            return churn_reduction.plan(spec, method, recipe, replica)
        case DeepMutualLearning() as method:
            return deep_mutual_learning.plan(spec, method, recipe, replica)
        case Kdcl() as method:
            return kdcl.plan(spec, method, recipe, replica)
        case Afd() as method:
            return afd.plan(spec, method, recipe, replica)
        case BeYourOwnTeacher() as method:
            return be_your_own_teacher.plan(spec, method, recipe, replica)
        case One() as method:
            return one.plan(spec, method, recipe, replica)
        case Okddip() as method:
            return okddip.plan(spec, method, recipe, replica)
        case FeatureFusionLearning() as method:
            return feature_fusion_learning.plan(spec, method, recipe, replica)
        case CheapConvolutions() as method:
            return cheap_convolutions.plan(spec, method, recipe, replica)
        case LocalSgd():
            return local_sgd.plan(spec, recipe, replica)
        case DiLoCo() as method:
            return diloco.plan(spec, method, recipe, replica)
        case _:
            assert_never(spec.method)
