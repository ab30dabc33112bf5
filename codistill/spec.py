"""What a user may ask for: `JobSpec` and its parts, the only configuration types there are.

A closed choice is a union told apart by `kind`. Unknown keys are refused. Nothing in a spec is a path, a URL or an
import: those would let whoever may submit a job run code or read files of the cluster. Everything here is plain data
and imports no torch, so the service can check a spec without it.

Read a spec with `codistill.spec_errors.parse_spec`, which names the bad key and what would be right.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SPEC_VERSION = 1
DEFAULT_BURN_IN_FRACTION = 0.4
"""Share of training before teachers are heard: about 0.41 in Anil et al.'s ImageNet run, 0.4 in later public code."""


class Spec(BaseModel):
    """Base of every configuration type: frozen, strictly typed, closed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


# ---------------------------------------------------------------- recipes: what is trained on what


class Digits(Spec):
    """Scikit-learn's 1,797 real images of handwritten digits (8 x 8 pixels, 10 classes) and a small CNN."""

    kind: Literal["digits"] = "digits"
    width: int = Field(default=16, ge=1, le=512)
    """Channels of the first convolution; the second has twice as many."""
    batch_norm: bool = True
    """Whether a BatchNorm follows each convolution."""
    train_size: int = Field(default=1000, ge=20, le=1000)
    """Training images; 300 others are for validation and 497 for the test, whatever this is."""


Recipe = Digits


# ---------------------------------------------------------------- methods: how models teach each other


class Solo(Spec):
    """Plain training: every replica on its own labels, nobody teaches. The control of every comparison."""

    kind: Literal["solo"] = "solo"


class Codistillation(Spec):
    """Replicas pulled towards the mean prediction of stale copies of their peers (Anil et al. 2018)."""

    kind: Literal["codistillation"] = "codistillation"
    weight: float = Field(default=1.0, ge=0, le=1000)
    """Factor of the distillation term; 0 gives the very run of `solo`, bit for bit."""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """Softens teacher and student alike; the term is scaled by its square."""
    burn_in_steps: int | None = Field(default=None, ge=0)
    """Steps before teachers are heard; left out, 40 % of `training.steps`."""


Method = Annotated[Solo | Codistillation, Field(discriminator="kind")]


# ---------------------------------------------------------------- data: which replica sees what


class SameOrder(Spec):
    """All replicas see the same samples in the same order (for equality tests)."""

    kind: Literal["same_order"] = "same_order"


class SameSet(Spec):
    """All replicas see the whole training set, each in its own order."""

    kind: Literal["same_set"] = "same_set"


class Disjoint(Spec):
    """The training set is cut into as many parts as there are replicas; each sees its own only."""

    kind: Literal["disjoint"] = "disjoint"


DataMode = Annotated[SameOrder | SameSet | Disjoint, Field(discriminator="kind")]


# ---------------------------------------------------------------- exchange: who hears whom, how, how often


class All(Spec):
    """Every replica learns from every other."""

    kind: Literal["all"] = "all"


class Ring(Spec):
    """Replica i learns from replica i - 1: one teacher each, whatever the number of replicas."""

    kind: Literal["ring"] = "ring"


Topology = Annotated[All | Ring, Field(discriminator="kind")]


class AutoTransport(Spec):
    """Files on one machine; on Ray the object store, and files again in lockstep, where snapshots must outlive
    whoever published them."""

    kind: Literal["auto"] = "auto"


class MemoryTransport(Spec):
    """All replicas in one process, taking turns: for tests and debugging."""

    kind: Literal["memory"] = "memory"


class FilesTransport(Spec):
    """Files in the run directory, mapped into memory by their readers."""

    kind: Literal["files"] = "files"


class ObjectStoreTransport(Spec):
    """Ray's object store: one copy to publish, none to read on the same node. Needs Ray."""

    kind: Literal["object_store"] = "object_store"


Transport = Annotated[
    AutoTransport | MemoryTransport | FilesTransport | ObjectStoreTransport, Field(discriminator="kind")
]


class Weights(Spec):
    """Replicas send their weights; readers evaluate them on their own batches."""

    kind: Literal["weights"] = "weights"


class Exchange(Spec):
    """What travels between replicas, how, and when."""

    currency: Weights = Weights()
    topology: Topology = All()
    transport: Transport = AutoTransport()
    mode: Literal["async", "lockstep"] = "async"
    """`async` never waits and learns from the newest there is; `lockstep` waits for the exact version."""
    interval_steps: int = Field(default=50, ge=1, le=1_000_000)
    """Optimizer steps between two published snapshots."""
    start_together_s: float = Field(default=30.0, ge=0, le=3600)
    """Longest wait, before the very first step only, for the peers to be there too; 0 starts at once."""
    max_lag_steps: int | None = Field(default=None, ge=0)
    """A peer whose snapshot is older than this is not heard; left out, age is only recorded."""


# ---------------------------------------------------------------- training


class Sgd(Spec):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    learning_rate: float = Field(default=0.05, gt=0, le=100)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=1e-4, ge=0, le=10)

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum > 0, e.g. momentum = 0.9")
        return self


class AdamW(Spec):
    """Adam with decoupled weight decay."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0, le=100)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    weight_decay: float = Field(default=1e-2, ge=0, le=10)


Optimizer = Annotated[Sgd | AdamW, Field(discriminator="kind")]


class Constant(Spec):
    """The learning rate stays as it is."""

    kind: Literal["constant"] = "constant"


class Cosine(Spec):
    """Linear warm-up, then half a cosine down to 0 at the last step."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)


Schedule = Annotated[Constant | Cosine, Field(discriminator="kind")]


class Training(Spec):
    """How each replica is trained. Batch size and steps are per replica."""

    steps: int = Field(default=1000, ge=1, le=100_000_000)
    """Optimizer steps of each replica."""
    batch_size: int = Field(default=64, ge=1, le=1_000_000)
    """Samples per step of each replica."""
    optimizer: Optimizer = Sgd()
    schedule: Schedule = Cosine()
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; left out, gradients are not clipped."""
    log_interval_steps: int = Field(default=10, ge=1)
    evaluate_interval_steps: int = Field(default=200, ge=1)
    checkpoint_interval_steps: int = Field(default=100, ge=1)


class Replicas(Spec):
    """How many models are trained side by side, and what each is given."""

    count: int = Field(default=2, ge=1, le=16)
    ranks: int = Field(default=1, ge=1, le=1)
    """Processes per replica. Only 1 for now."""
    cpus: float = Field(default=1.0, gt=0, le=1024)
    """CPUs reserved for each rank on Ray; also its number of compute threads, rounded down, at least 1."""
    gpus: float = Field(default=0.0, ge=0, le=64)
    """GPUs reserved for each rank on Ray; above 0 the replica trains on `cuda`."""


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
    name: str = Field(default="job", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
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
        if isinstance(self.training.schedule, Cosine) and self.training.schedule.warmup_steps > self.training.steps:
            raise ValueError(
                f"training.schedule.warmup_steps ({self.training.schedule.warmup_steps}) exceeds"
                f" training.steps ({self.training.steps})"
            )
        samples = self.recipe.train_size
        if isinstance(self.data, Disjoint):
            samples //= self.replicas.count
        if self.training.batch_size > samples:
            raise ValueError(
                f"training.batch_size ({self.training.batch_size}) exceeds the {samples} training samples"
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
    def exchanges(self) -> bool:
        """Whether replicas of this job publish anything at all."""
        return not isinstance(self.method, Solo)


def replica_name(index: int) -> str:
    """The name of replica `index` in paths, logs and messages."""
    return f"replica-{index}"
