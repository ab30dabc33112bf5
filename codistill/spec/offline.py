"""Methods whose teacher is trained before the student."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from codistill.spec.base import NAME_PATTERN, Divergence, OperatorName, Spec
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


class Ensemble(Spec):
    """Several models that have been trained, each as good as any other: their distributions are averaged."""

    kind: Literal["ensemble"] = "ensemble"
    of: tuple[Annotated[OfJob | RegisteredModel, Field(discriminator="kind")], ...] = Field(min_length=2, max_length=16)


HINTONS_TEMPERATURE = 4.0

OneTeacher = Annotated[TrainedFirst | OfJob | RegisteredModel, Field(discriminator="kind")]
FrozenTeacher = Annotated[TrainedFirst | OfJob | RegisteredModel | Ensemble, Field(discriminator="kind")]


class KnowledgeDistillation(Spec):
    """A student pulled towards trained teachers that do not change (Hinton et al. 2015)."""

    kind: Literal["knowledge_distillation"] = "knowledge_distillation"
    teacher: FrozenTeacher = TrainedFirst()
    alpha: float = Field(default=0.9, ge=0, le=1)
    """Factor of the distillation term; the loss on the labels gets the rest. 0 gives the very run of `solo`."""
    divergence: Divergence = "kl"
    """What the term measures between the teachers' mean prediction and the student's."""
    temperature: float = Field(default=HINTONS_TEMPERATURE, gt=0, le=100)
    """Softens teachers and student alike; the term is scaled by its square. `logit_regression` has none."""
    cache_predictions: bool = False
    """Whether what the teachers say of the training samples is worked out once, before the first step, and joined by
    sample id from then on: teachers x samples x classes x 4 bytes. For recipes that show a sample always alike."""

    @model_validator(mode="after")
    def _temperature_is_used(self) -> KnowledgeDistillation:
        if self.divergence == "logit_regression" and self.temperature != HINTONS_TEMPERATURE:
            raise ValueError("divergence 'logit_regression' compares logits, which have no temperature; leave it out")
        return self


def jobs_named(teacher: object) -> Iterator[tuple[str, OfJob]]:
    """The jobs whose models teach, each with the place of its name within `teacher`."""
    match teacher:
        case OfJob():
            yield "job", teacher
        case Ensemble(of=members):
            for number, member in enumerate(members):
                if isinstance(member, OfJob):
                    yield f"of.{number}.job", member
        case _:
            pass
