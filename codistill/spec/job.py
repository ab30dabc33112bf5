"""`JobSpec`: one job, whole."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from codistill.spec.base import NAME_PATTERN, Spec
from codistill.spec.exchange import Exchange, MemoryTransport
from codistill.spec.methods import DEFAULT_BURN_IN_FRACTION, Codistillation, DataMode, Disjoint, Method, SameSet, Solo
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
        Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")], Annotated[str, Field(max_length=256)]
    ] = Field(default={}, max_length=32)
    seed: int = Field(default=0, ge=0, lt=2**63)
    recipe: Recipe = Digits()
    method: Method = Codistillation()
    data: DataMode = SameSet()
    exchange: Exchange = Exchange()
    training: Training = Training()
    replicas: Replicas = Replicas()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _parts_agree(self) -> JobSpec:
        if isinstance(self.method, Codistillation) and self.replicas.count < 2:
            raise ValueError(
                "method 'codistillation' needs at least 2 replicas, replicas.count is 1;"
                " raise it, or use method.kind = 'solo'"
            )
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
        if self.replicas.ranks > 1 and isinstance(self.exchange.transport, MemoryTransport):
            raise ValueError(
                "exchange.transport 'memory' joins replicas of one process, and replicas.ranks > 1 is one process for"
                " each rank; use kind = 'auto'"
            )
        # Of other data sets the size is known only where they are; the data loader then says the same.
        samples = None if isinstance(self.recipe, Installed) else self.recipe.train_size
        if samples is not None and isinstance(self.data, Disjoint):
            samples //= self.replicas.count
        if samples is not None and training.batch_size > samples:
            raise ValueError(
                f"training.batch_size ({training.batch_size}) exceeds the {samples} training samples"
                " of one replica; lower it"
            )
        return self

    @property
    def burn_in_steps(self) -> int:
        """Steps before any teacher is heard; the whole training for a method without teachers."""
        match self.method:
            case Solo():
                return self.training.steps
            case Codistillation(burn_in_steps=None):
                return round(DEFAULT_BURN_IN_FRACTION * self.training.steps)
            case Codistillation(burn_in_steps=int(given)):
                return given
            case _:  # pragma: no cover - the union is closed
                raise AssertionError(self.method)

    @property
    def on_cuda(self) -> bool:
        """Whether replicas train on NVIDIA GPUs."""
        return self.training.device == "cuda" or (self.training.device == "auto" and self.replicas.gpus > 0)

    @property
    def exchanges(self) -> bool:
        """Whether replicas of this job publish anything at all."""
        return not isinstance(self.method, Solo)


def replica_name(index: int) -> str:
    """The name of replica `index` in paths, logs and messages."""
    return f"replica-{index}"
