"""Methods: how models teach each other. One file each, which reads like the method section of its paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from codistill.methods import codistillation, label_smoothing, solo
from codistill.phase import Phase, Replica
from codistill.recipes import Recipe
from codistill.spec import Codistillation, JobSpec, LabelSmoothing, Solo


def plan(spec: JobSpec, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """The phases that `replica` goes through, in order."""
    match spec.method:
        case Solo():
            return solo.plan(spec, recipe, replica)
        case Codistillation():
            return codistillation.plan(spec, spec.method, recipe, replica)
        case LabelSmoothing():
            return label_smoothing.plan(spec, spec.method, recipe, replica)
        case _:
            assert_never(spec.method)
