"""What most methods share: one network, one optimizer over all of it, validation now and then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, assert_never

import torch
from torch import nn

from codistill.averaging import Averaging, Outer
from codistill.batch import Batch
from codistill.companion import ExchangeRule
from codistill.data.loader import training_batches
from codistill.data.split import Split, in_order
from codistill.evaluate import LOGITS, validation_survey
from codistill.phase import Artifacts, Group, Learner, Loss, Phase, Replica, Step, Survey, Update
from codistill.randomness import seed_everything
from codistill.recipes import Recipe
from codistill.schedules import open_schedule
from codistill.spec import AdamW, JobSpec, Sgd, Training
from codistill.teachers import TeacherSource

TRAIN = "train"
"""The phase whose model is exported, which every method ends with."""


def one_phase(
    spec: JobSpec,
    recipe: Recipe,
    replica: Replica,
    loss: Callable[[Step], Loss],
    *,
    teachers: Sequence[TeacherSource] = (),
    rules: Sequence[ExchangeRule] = (),
    learner: Callable[[Artifacts], Learner] | None = None,
    name: str = TRAIN,
    steps: int | None = None,
    taps: Mapping[str, str] = LOGITS,
    export: Callable[[Learner], nn.Module] = lambda learner: learner["net"],
    beside: Mapping[str, Group] = MappingProxyType({}),
) -> list[Phase]:
    """A single phase in which `loss` trains the part `net`, whose `taps` are evaluated, each under its name, and the
    groups `beside` it; all of the training, unless `name` and `steps` say otherwise. Of a phase under another name the
    surveys' names tell so."""
    whose = "" if name == TRAIN else f"{name}/"
    training = spec.training if steps is None else spec.training.model_copy(update={"steps": steps})
    return [
        Phase(
            name=name,
            steps=training.steps,
            learner=learner or (lambda artifacts: one_network(recipe, artifacts)),
            batches=lambda artifacts: batches_of(spec, recipe, replica, name),
            updates=[Update(loss, trains=("net", *beside))],
            groups={**groups(training, {"net": ("net.*",)}), **beside},
            teachers=teachers,
            rules=rules,
            surveys=[validation(spec, recipe, "net", {f"{whose}{of}": tap for of, tap in taps.items()})],
            export=export,
        )
    ]


def labels_alone(recipe: Recipe) -> Callable[[Step], Loss]:
    """The recipe's loss of `net`, and nothing else."""

    def loss(step: Step) -> Loss:
        task = recipe.task_loss(step.show("net"), step.batch)
        return Loss(task, {"train/task_loss": task.detach()})

    return loss


def one_network(recipe: Recipe, artifacts: Artifacts) -> Learner:
    """A learner with the single part `net`."""
    return Learner({"net": recipe.build_model()})


def same_network(spec: JobSpec, recipe: Recipe, artifacts: Artifacts) -> Learner:
    """`one_network` with the same first weights in all replicas: those that the first would have by itself."""
    seed_everything(spec.seed, 0, TRAIN, "init")
    return one_network(recipe, artifacts)


def averaging_of(spec: JobSpec, replica: Replica, outer: Outer | None = None) -> Averaging:
    """The rule by which the replicas of the spec become their mean."""
    return Averaging(
        interval_steps=spec.exchange.interval_steps,
        steps=spec.training.steps,
        replica=replica.index,
        replicas=replica.count,
        outer=outer,
        precision=spec.exchange.precision,
    )


def batches_of(
    spec: JobSpec,
    recipe: Recipe,
    replica: Replica,
    phase: str = TRAIN,
    *,
    split: Split | None = None,
    views: tuple[str, ...] = (),
) -> Callable[[int], Batch]:
    """This rank's share of what the replica trains on in a phase, by step: of the training samples, unless `split` says
    otherwise, in so many more `views`. Each phase has an order of its own."""
    names = () if phase == TRAIN else (phase,)
    samples = recipe.split("train") if split is None else split
    return training_batches(samples, spec.data, replica, spec.training.batch_size, *names, views=views)


def groups(training: Training, select: Mapping[str, tuple[str, ...]]) -> dict[str, Group]:
    """A group for each name, of the parameters that its globs select, all under the optimizer of the spec."""
    return {
        name: Group(
            select=globs,
            optimizer=lambda parameters: open_optimizer(training, parameters),
            schedule=open_schedule(training.schedule, training.steps),
            clip_norm=training.clip_norm,
            decay_schedule=open_schedule(training.weight_decay_schedule, training.steps),
        )
        for name, globs in select.items()
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


def validation(spec: JobSpec, recipe: Recipe, part: str, taps: Mapping[str, str] = LOGITS) -> Survey:
    """How good taps of a part are on the validation data; each has a name, that of what is exported is empty."""
    return validation_survey(
        lambda: in_order(recipe.split("validation")),
        every_steps=spec.training.evaluate_interval_steps,
        part=part,
        taps=taps,
    )


def surveys(spec: JobSpec, recipe: Recipe, parts: Mapping[str, str]) -> list[Survey]:
    """The validation of the logits of each of `parts`, which maps it to its name."""
    return [validation(spec, recipe, part, {whose: "logits"}) for part, whose in parts.items()]
