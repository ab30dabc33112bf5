"""Methods whose teacher is trained before the student."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from codistill.spec.base import NAME_PATTERN, OperatorName, Spec
from codistill.spec.recipes import Recipe


class TrainedFirst(Spec):
    """A first phase of the same job, on the same samples."""

    kind: Literal["trained_first"] = "trained_first"
    steps: int = Field(default=1000, ge=1, le=100_000_000)
    """Steps of that phase; those of the student are `training.steps`."""
    recipe: Recipe | None = None
    """What it trains, for a teacher of another size; left out, the recipe of the job."""


class OfJob(Spec):
    """What a job that has ended left in its export, in the same storage."""

    kind: Literal["job"] = "job"
    job: str = Field(pattern=NAME_PATTERN)
    replica: int = Field(default=0, ge=0, lt=1024)


class RegisteredModel(Spec):
    """A model export that the operator has given a name."""

    kind: Literal["model"] = "model"
    name: OperatorName


FrozenTeacher = Annotated[TrainedFirst | OfJob | RegisteredModel, Field(discriminator="kind")]


class KnowledgeDistillation(Spec):
    """A student pulled towards a trained teacher that does not change (Hinton et al. 2015)."""

    kind: Literal["knowledge_distillation"] = "knowledge_distillation"
    teacher: FrozenTeacher = TrainedFirst()
    alpha: float = Field(default=0.9, ge=0, le=1)
    """Factor of the distillation term; the loss on the labels gets the rest. 0 gives the very run of `solo`."""
    temperature: float = Field(default=4.0, gt=0, le=100)
    """Softens teacher and student alike; the term is scaled by its square."""
