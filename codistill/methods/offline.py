"""What methods with a trained teacher share: where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from torch import nn

from codistill.companion import Opening
from codistill.exported import exported_model, mismatch
from codistill.methods.common import labels_alone, one_phase
from codistill.phase import Phase, Replica
from codistill.recipes import Recipe, recipe_of
from codistill.spec import Ensemble, FrozenTeacher, JobSpec, OfJob, RegisteredModel, TrainedFirst

TEACHER = "teacher"
"""The phase in which a teacher is trained first."""

Model = Callable[[Opening], nn.Module]


class Kept:
    """A model that two ask: a teacher that opens it, and a survey."""

    def __init__(self, build: Model) -> None:
        self._build = build
        self.model: nn.Module

    def open(self, opening: Opening) -> nn.Module:
        self.model = self._build(opening)
        return self.model


def teachers_recipe(teacher: FrozenTeacher, recipe: Recipe) -> Recipe:
    """What a teacher that is trained first trains, for a student of `recipe`. Raises `ValueError` when the student
    cannot learn from that."""
    if not isinstance(teacher, TrainedFirst) or teacher.recipe is None:
        return recipe
    own = recipe_of(teacher.recipe)
    if (problem := mismatch(own, recipe)) is not None:
        raise ValueError(f"method.teacher.recipe: the teacher {problem}")
    return own


def phases_before(spec: JobSpec, teacher: FrozenTeacher, recipe: Recipe, replica: Replica) -> list[Phase]:
    """The phase `teacher`, where the teacher is trained first. Raises `ValueError` when it would train what a student
    of `recipe` cannot learn from."""
    if not isinstance(teacher, TrainedFirst):
        return []
    own = teachers_recipe(teacher, recipe)
    return one_phase(spec, own, replica, labels_alone(own), name=TEACHER, steps=teacher.steps)


def models_of(teacher: FrozenTeacher, recipe: Recipe) -> list[Model]:
    """The teachers of a student of `recipe`, as they are opened: what the phase before ended with, or exports."""
    match teacher:
        case TrainedFirst():
            return [lambda opening: opening.finished[TEACHER]["net"]]
        case OfJob() | RegisteredModel():
            return [lambda opening: exported_model(teacher, opening.storage, recipe)]
        case Ensemble():
            return [model for member in teacher.of for model in models_of(member, recipe)]
        case _:
            assert_never(teacher)
