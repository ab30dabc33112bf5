"""Plain training: each replica on its own labels. The control of every comparison."""

from __future__ import annotations

from collections.abc import Sequence

from codistill.methods.common import labels_alone, one_phase
from codistill.phase import Phase, Replica
from codistill.recipes import Recipe
from codistill.spec import JobSpec


def plan(spec: JobSpec, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """One phase, no teachers, nothing published."""
    return one_phase(spec, recipe, replica, labels_alone(recipe))
