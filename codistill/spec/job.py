"""`JobSpec`: one job, whole."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from codistill.spec.averaging import DiLoCo, LocalSgd, why_not_averaged
from codistill.spec.base import NAME_PATTERN, Spec
from codistill.spec.cohorts import NORMALISED, DeepMutualLearning, Kdcl
from codistill.spec.combining import GeneralTarget, why_not_cut, why_nothing_to_attend
from codistill.spec.exchange import Exchange, MemoryTransport, Predictions, misfit, most_heard
from codistill.spec.joining import why_not_cached, why_not_joined
from codistill.spec.methods import (
    DEFAULT_BURN_IN_FRACTION,
    Arm,
    Codistillation,
    Control,
    DataMode,
    Disjoint,
    LabelSmoothing,
    Method,
    SameSet,
    Solo,
)
from codistill.spec.mixed import why_not_beside, why_not_mixed
from codistill.spec.offers import why_not_offered, why_not_seen
from codistill.spec.offline import KnowledgeDistillation, steps_before
from codistill.spec.recipes import Digits, Installed, Recipe
from codistill.spec.training import Replicas, Training

SPEC_VERSION = 1


class Limits(Spec):
    """When to give up."""

    max_failures: int = Field(default=3, ge=0, le=1000)
    """Restarts each replica may have within one attempt."""
    max_attempts: int = Field(default=3, ge=1, le=100)
    """Drivers the service may start for the job, one after another."""
    max_runtime_s: float = Field(default=86_400.0, gt=0, le=30 * 86_400.0)
    start_deadline_s: float = Field(default=300.0, gt=0)
    """Longest wait for the first step of every replica after an attempt has started."""
    lockstep_timeout_s: float = Field(default=120.0, gt=0)
    """Longest wait for a peer's exact version in lockstep; a replica gives up after it."""


class JobSpec(Spec):
    """One job: what to train, on what, and how its replicas teach each other."""

    spec_version: Literal[1] = SPEC_VERSION
    name: str = Field(default="job", pattern=NAME_PATTERN)
    labels: dict[
        Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")],
        Annotated[str, Field(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")],
    ] = Field(default={}, max_length=32)
    priority: int = Field(default=0, ge=-100, le=100)
    """Of jobs that wait in a service, those of higher priority are admitted first; elsewhere nobody waits."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    recipe: Recipe = Digits()
    recipes: tuple[Recipe, ...] = Field(default=(), max_length=16)
    """One for each replica, where they train different models of one data set, e.g. a large one that teaches a small
    one. Left out, all train `recipe`; given, `recipe` is the first of them, and may be left out."""
    method: Method = Codistillation()
    controls: tuple[Control, ...] = Field(default=(), max_length=2)
    """Arms that the job trains as well, once its own replicas have ended well, with the same resources. Replica i of a
    control has the seeds, the data and the first weights of the job's replica i, and no teachers: `solo` is plain
    training; `smoothing` is label smoothing of the job's weight, its schedule and burn-in, whose epsilon is what the
    teachers of replica i took off the label, at temperature 1, in the mean over its logged steps."""
    data: DataMode = SameSet()
    exchange: Exchange = Exchange()
    training: Training = Training()
    replicas: Replicas = Replicas()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _recipe_is_the_first(self) -> JobSpec:
        if self.recipes and "recipe" not in self.model_fields_set:
            object.__setattr__(self, "recipe", self.recipes[0])  # it is still being made
        return self

    @model_validator(mode="after")
    def _method_fits_recipe_and_exchange(self) -> JobSpec:
        if isinstance(self.method, Codistillation) and self.replicas.count < 2:
            raise ValueError(
                "method 'codistillation' needs at least 2 replicas, replicas.count is 1;"
                " raise it, or use method.kind = 'solo'"
            )
        for recipe in self.recipes or (self.recipe,):
            if (problem := why_not_offered(self.method, recipe)) is not None:
                raise ValueError(problem)
        if self.exchanges and (problem := misfit(self.exchange.topology, self.replicas.count)) is not None:
            raise ValueError(f"exchange.{problem}")
        if isinstance(self.method, Codistillation):
            heard = most_heard(self.exchange.topology, self.replicas.count)
            if (problem := why_nothing_to_attend(self.method.target, most_heard=heard)) is not None:
                raise ValueError(problem)
        if self.recipes:
            problem = why_not_mixed(self.recipes, self.recipe, self.replicas.count)
            if (problem := problem or why_not_seen(self.method, self.recipes)) is not None:
                raise ValueError(problem)
        if isinstance(self.method, DeepMutualLearning | Kdcl):
            problem = why_not_beside(self.method.others, self.recipe, self.method.nets)
            if problem is not None:
                raise ValueError(problem)
        if isinstance(self.method, Codistillation) and isinstance(self.exchange.currency, Predictions):
            problem = why_not_joined(self.exchange.currency, self.exchange, self.method, self.recipe, self.data)
            if problem is not None:
                raise ValueError(problem)
        is_cached = isinstance(self.method, KnowledgeDistillation) and self.method.cache_predictions
        if is_cached and (problem := why_not_cached(self.recipe)) is not None:
            raise ValueError(problem)
        if self.averages and self.recipes:
            raise ValueError(
                f"recipes gives replicas models of their own, and method '{self.method.kind}' makes one of them, their"
                " mean; leave recipes out, or use method.kind = 'codistillation'"
            )
        if isinstance(self.method, LocalSgd | DiLoCo):
            problem = why_not_averaged(self.method, self.exchange, self.training, self.replicas.count)
            if problem is not None:
                raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _controls_have_something_to_control(self) -> JobSpec:
        for control in self.controls:
            if self.controls.count(control) > 1:
                raise ValueError(f"controls names '{control}' twice; each control is trained once")
        if self.controls and not isinstance(self.method, Codistillation):
            raise ValueError(
                f"controls are what replicas that teach each other are compared with, and method '{self.method.kind}'"
                " has no teachers; leave controls out, or use method.kind = 'codistillation'"
            )
        return self

    @model_validator(mode="after")
    def _training_can_be_cut_and_fed(self) -> JobSpec:
        training = self.training
        for key in ("schedule", "weight_decay_schedule"):
            warmup_steps = getattr(training, key).warmup_steps
            if warmup_steps > training.steps:
                raise ValueError(
                    f"training.{key}.warmup_steps ({warmup_steps}) exceeds training.steps ({training.steps})"
                )
        shares = self.replicas.ranks * training.accumulate
        if training.batch_size % shares:
            raise ValueError(
                f"training.batch_size ({training.batch_size}) must be a multiple of replicas.ranks x"
                f" training.accumulate ({self.replicas.ranks} x {training.accumulate} = {shares}), which share it"
            )
        target = self.method.target if isinstance(self.method, Codistillation | Kdcl) else None
        guard = isinstance(self.method, Codistillation) and self.method.harm_guard
        if (problem := why_not_cut(target, accumulate=training.accumulate, harm_guard=guard)) is not None:
            raise ValueError(problem)
        if training.batch_size == shares and isinstance(self.method, NORMALISED):
            raise ValueError(
                f"method '{self.method.kind}' normalises over the samples of a micro-batch, and needs at least 2:"
                f" training.batch_size ({training.batch_size}) leaves 1 for each; raise it"
            )
        if self.replicas.ranks > 1 and isinstance(self.exchange.transport, MemoryTransport):
            raise ValueError(
                "exchange.transport 'memory' joins replicas of one process, and replicas.ranks > 1 is one process for"
                " each rank; use kind = 'auto'"
            )
        # Of other data sets the size is known only where they are; the data loader then says the same.
        samples = None if isinstance(self.recipe, Installed) else self.recipe.train_size
        left = ""
        if samples is not None and isinstance(self.method, Kdcl) and isinstance(self.method.target, GeneralTarget):
            samples -= self.method.target.held_out
            left = f" that method.target.held_out ({self.method.target.held_out}) leaves"
        if samples is not None and isinstance(self.data, Disjoint):
            samples //= self.replicas.count
        if samples is not None and training.batch_size > samples:
            raise ValueError(
                f"training.batch_size ({training.batch_size}) exceeds the {max(samples, 0)} training samples"
                f" of one replica{left}; lower it"
            )
        return self

    @property
    def burn_in_steps(self) -> int:
        """Steps before any peer is heard; the whole training for a method without."""
        match self.method:
            case Codistillation(burn_in_steps=None):
                return round(DEFAULT_BURN_IN_FRACTION * self.training.steps)
            case Codistillation(burn_in_steps=int(given)):
                return given
            case _:
                return self.training.steps

    @property
    def total_steps(self) -> int:
        """Of all phases of a replica."""
        return steps_before(self.method) + self.training.steps

    @property
    def on_cuda(self) -> bool:
        """Whether replicas train on NVIDIA GPUs."""
        return self.training.device == "cuda" or (self.training.device == "auto" and self.replicas.gpus > 0)

    @property
    def exchanges(self) -> bool:
        """Whether replicas of this job publish anything at all."""
        return isinstance(self.method, Codistillation) or self.averages

    @property
    def averages(self) -> bool:
        """Whether replicas of this job become their mean at every exchange."""
        return isinstance(self.method, LocalSgd | DiLoCo)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All that the job trains, in this order: its own replicas, then each control."""
        return ("replica", *self.controls)

    def for_replica(self, index: int) -> JobSpec:
        """The same, with what replica `index` trains as `recipe`."""
        return self.model_copy(update={"recipe": self.recipes[index]}) if self.recipes else self

    def for_arm(self, arm: Arm, *, epsilon: float | None = None) -> JobSpec:
        """What a replica of `arm` trains: this spec, or the same with the control's method and without controls.

        `epsilon` is the strength of `smoothing`, and needed for it alone. Raises `ValueError` when it is missing, or
        for a control of a method that has no teachers.
        """
        if arm == "replica":
            return self
        if not isinstance(self.method, Codistillation):
            raise ValueError(f"method '{self.method.kind}' has no teachers, hence no control '{arm}'")
        if arm == "solo":
            return self.model_copy(update={"method": Solo(), "controls": ()})
        if epsilon is None:
            raise ValueError("control 'smoothing' needs epsilon, what the teachers took off the label")
        method = LabelSmoothing(
            epsilon=epsilon,
            weight=self.method.weight,
            weight_schedule=self.method.weight_schedule,
            burn_in_steps=self.burn_in_steps,
        )
        return self.model_copy(update={"method": method, "controls": ()})


def replica_name(index: int, arm: Arm = "replica") -> str:
    """The name of replica `index` of an arm in paths, logs and messages."""
    return f"{arm}-{index}"
