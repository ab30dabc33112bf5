"""What most methods share: one network, one optimizer over all of it, validation now and then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, assert_never

import torch
from torch import nn

from codistill.batch import Batch
from codistill.data.loader import training_batches
from codistill.data.split import in_order
from codistill.evaluate import validation_survey
from codistill.phase import Artifacts, Group, Learner, Loss, Phase, Replica, Step, Survey, Update
from codistill.recipes import Recipe
from codistill.schedules import open_schedule
from codistill.spec import AdamW, JobSpec, Sgd, Training
from codistill.teachers import TeacherSource


def one_phase(
    spec: JobSpec,
    recipe: Recipe,
    replica: Replica,
    loss: Callable[[Step], Loss],
    *,
    teachers: Sequence[TeacherSource] = (),
) -> list[Phase]:
    """All of the training as a single phase `train`, in which `loss` trains the whole network."""
    return [
        Phase(
            name="train",
            steps=spec.training.steps,
            learner=lambda artifacts: one_network(recipe, artifacts),
            batches=lambda artifacts: batches_of(spec, recipe, replica),
            updates=[Update(loss, trains=("net",))],
            groups=one_group(spec.training),
            teachers=teachers,
            surveys=surveys(spec, recipe),
        )
    ]


def one_network(recipe: Recipe, artifacts: Artifacts) -> Learner:
    """A learner with the single part `net`."""
    return Learner({"net": recipe.build_model()})


def batches_of(spec: JobSpec, recipe: Recipe, replica: Replica) -> Callable[[int], Batch]:
    """This rank's share of what the replica trains on, by step."""
    return training_batches(recipe.split("train"), spec.data, replica, spec.training.batch_size)


def one_group(training: Training) -> dict[str, Group]:
    """All of `net` under the optimizer of the spec."""
    return {
        "net": Group(
            select=("net.*",),
            optimizer=lambda parameters: open_optimizer(training, parameters),
            schedule=open_schedule(training.schedule, training.steps),
            clip_norm=training.clip_norm,
            decay_schedule=open_schedule(training.weight_decay_schedule, training.steps),
        )
    }


def open_optimizer(training: Training, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that the spec describes."""
    groups = _decayed_and_not(parameters) if not training.decay_vectors else [{"params": parameters}]
    match training.optimizer:
        case Sgd() as sgd:
            return torch.optim.SGD(
                groups,
                lr=sgd.learning_rate,
                momentum=sgd.momentum,
                nesterov=sgd.nesterov,
                weight_decay=sgd.weight_decay,
            )
        case AdamW() as adamw:
            return torch.optim.AdamW(
                groups,
                lr=adamw.learning_rate,
                betas=(adamw.beta1, adamw.beta2),
                weight_decay=adamw.weight_decay,
            )
        case _:
            assert_never(training.optimizer)


def _decayed_and_not(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]


def surveys(spec: JobSpec, recipe: Recipe) -> tuple[Survey, ...]:
    """The validation every method does."""
    return (
        validation_survey(
            lambda: in_order(recipe.split("validation")), every_steps=spec.training.evaluate_interval_steps
        ),
    )
