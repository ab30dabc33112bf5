"""Training: how each replica is trained, and on how many processes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from codistill.spec.base import Spec


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
    """Linear warm-up, then as it is."""

    kind: Literal["constant"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)


class Cosine(Spec):
    """Linear warm-up, then half a cosine down to `final_factor` at the last step."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    final_factor: float = Field(default=0.0, ge=0, le=1)


class Linear(Spec):
    """Linear warm-up, then a straight line to `final_factor` at the last step."""

    kind: Literal["linear"] = "linear"
    warmup_steps: int = Field(default=0, ge=0)
    final_factor: float = Field(default=0.0, ge=0, le=100)


class Milestones(Spec):
    """Linear warm-up, then constant, multiplied by `factor` at each milestone."""

    kind: Literal["milestones"] = "milestones"
    warmup_steps: int = Field(default=0, ge=0)
    steps: tuple[int, ...] = Field(min_length=1, max_length=64)
    """Steps at which the value falls."""
    factor: float = Field(default=0.1, gt=0, le=1)


class RampUp(Spec):
    """From e^-5 up to 1 after `ramp_steps`, along a Gaussian: usual for the weight of a teacher."""

    kind: Literal["ramp_up"] = "ramp_up"
    ramp_steps: int = Field(ge=0, le=100_000_000)


Schedule = Annotated[Constant | Cosine | Linear | Milestones, Field(discriminator="kind")]
WeightSchedule = Annotated[Constant | Cosine | Linear | Milestones | RampUp, Field(discriminator="kind")]


class Loader(Spec):
    """How batches are made."""

    workers: int = Field(default=0, ge=0, le=128)
    """Processes that read and augment, for each rank; 0 makes batches in the training process."""
    prefetch_batches: int = Field(default=2, ge=1, le=128)
    """Batches that each worker makes ahead."""


class Training(Spec):
    """How each replica is trained. Batch size and steps are per replica, whatever its ranks."""

    steps: int = Field(default=1000, ge=1, le=100_000_000)
    """Optimizer steps of each replica."""
    batch_size: int = Field(default=64, ge=1, le=1_000_000)
    """Samples per step of each replica, over all its ranks and micro-batches."""
    accumulate: int = Field(default=1, ge=1, le=10_000)
    """Micro-batches that a rank's share of a batch is cut into; their gradients add up to one step."""
    optimizer: Optimizer = Sgd()
    schedule: Schedule = Cosine()
    """Of the learning rate."""
    weight_decay_schedule: Schedule = Constant()
    """Of the weight decay. Co-distillation regularises too: letting weight decay fall once teachers are heard can help
    (see `docs/tuning.md`)."""
    decay_vectors: bool = True
    """Whether weight decay acts on biases and normalisation too; false leaves it to parameters of two and more
    dimensions."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; left out, gradients are not clipped."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """An exponential moving average of the weights is kept, evaluated and exported; peers still get the weights."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the forward passes (autocast); fp16 scales the loss. Weights, losses and softmaxes stay in float32."""
    compile: bool = False
    """Whether models, teachers' too, go through `torch.compile`."""
    deterministic: bool = False
    """Whether torch is held to deterministic algorithms; slower on GPUs, and an error where there is none."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`auto` is `cuda` where `replicas.gpus` reserves some, else `cpu`."""
    loader: Loader = Loader()
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(default=(), max_length=3)
    """Where metrics are mirrored to, beside the run directory."""
    log_interval_steps: int = Field(default=10, ge=1)
    evaluate_interval_steps: int = Field(default=200, ge=1)
    checkpoint_interval_steps: int = Field(default=100, ge=1)


SMALLEST_SHARE = 0.01
"""Of a CPU or a GPU: below it a reservation means nothing."""


class Replicas(Spec):
    """How many models are trained side by side, and what each is given."""

    count: int = Field(default=2, ge=1, le=16)
    ranks: int = Field(default=1, ge=1, le=64)
    """Processes per replica, which share each batch (data parallel)."""
    cpus: float = Field(default=1.0, ge=SMALLEST_SHARE, le=1024)
    """CPUs reserved for each rank on Ray; also its number of compute threads, rounded down, at least 1."""
    gpus: float = Field(default=0.0, ge=0, le=64)
    """GPUs reserved for each rank on Ray, a fraction for several on one; above 0 the replica trains on `cuda`."""

    @model_validator(mode="after")
    def _ranks_have_whole_gpus(self) -> Replicas:
        if 0 < self.gpus < SMALLEST_SHARE:
            raise ValueError(f"replicas.gpus is {self.gpus:g}: at least {SMALLEST_SHARE:g} of one, or none")
        if self.ranks > 1 and 0 < self.gpus < 1:
            raise ValueError(
                f"replicas.gpus is {self.gpus:g} and replicas.ranks {self.ranks}: ranks of one replica cannot share a"
                " GPU (NCCL refuses); use gpus = 1 with several ranks, or ranks = 1 with a fraction"
            )
        return self
