"""Methods whose teacher is trained before the student."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from codistill.spec.base import NAME_PATTERN, Divergence, OperatorName, Spec
from codistill.spec.recipes import Recipe
from codistill.spec.training import Linear, WeightSchedule


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


class TwoStage(Spec):
    """First the hint alone, then knowledge distillation from what it led to."""

    kind: Literal["two_stage"] = "two_stage"
    hint_steps: int = Field(default=500, ge=0, le=100_000_000)
    """Steps of the phase `hint`; 0 leaves it out. Those of the second stage are `training.steps`."""
    weight: float = Field(default=0.44, ge=0, le=1000)
    """Factor of the distillation term in the second stage: the paper's 4, of a term without T^2."""
    weight_schedule: WeightSchedule = Linear(final_factor=0.25)
    """Of that weight."""
    temperature: float = Field(default=3.0, gt=0, le=100)


class OneStage(Spec):
    """The hint beside the loss on the labels, all the time."""

    kind: Literal["one_stage"] = "one_stage"
    weight: float = Field(default=1.0, ge=0, le=10_000)
    """Factor of the hint; 0 gives the very run of `solo`. Public code has 100, and BatchNorm behind its regressor."""


class Hints(Spec):
    """A student whose features, mapped linearly, are pulled towards those of a trained teacher (Romero et al. 2015)."""

    kind: Literal["hints"] = "hints"
    teacher: OneTeacher = TrainedFirst()
    teacher_recipe: Recipe | None = None
    """What a teacher of kind `job` or `model` was trained with; left out, the recipe of the job."""
    scheme: Annotated[TwoStage | OneStage, Field(discriminator="kind")] = TwoStage()
    stage: int | None = Field(default=None, ge=0, lt=1000)
    """The student's stage that is guided, counted from 0; left out, the middle one (of two the first)."""
    teacher_stage: int | None = Field(default=None, ge=0, lt=1000)
    """The teacher's stage that guides it; left out, its middle one."""

    @model_validator(mode="after")
    def _recipe_is_told_once(self) -> Hints:
        if self.teacher_recipe is not None and isinstance(self.teacher, TrainedFirst):
            raise ValueError("teacher_recipe tells of a teacher out of an export; of one that is trained first,"
                             " teacher.recipe does: leave teacher_recipe out")  # fmt: skip
        return self


class ChurnReduction(Spec):
    """A model that is to take the place of one in use, the incumbent, pulled towards it so that fewer predictions
    change (Jiang et al. 2022)."""

    kind: Literal["churn_reduction"] = "churn_reduction"
    teacher: OneTeacher = TrainedFirst()
    """The incumbent; one that is trained first is for trials."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Share of the incumbent's distribution in the target; the label has the rest. 0 gives the very run of `solo`."""


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


def steps_before(method: object) -> int:
    """Of all phases before the student's last one."""
    teacher, scheme = getattr(method, "teacher", None), getattr(method, "scheme", None)
    of_teacher = teacher.steps if isinstance(teacher, TrainedFirst) else 0
    return of_teacher + (scheme.hint_steps if isinstance(scheme, TwoStage) else 0)
