"""The training loop: one phase, from top to bottom. It knows no method by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codistill.batch import Batch
from codistill.checkpoint import pack_optimizer, unpack_optimizer
from codistill.exchange.peers import Mailbox, StopRequested
from codistill.phase import Group, Learner, Phase, State, Step
from codistill.randomness import Name, seed_everything
from codistill.teachers import Teacher


class TrainingDiverged(RuntimeError):
    """The loss of a step is not a finite number."""


@dataclass
class OpenGroup:
    """A group with its parameters and its optimizer."""

    group: Group
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    base_rates: list[float]

    @staticmethod
    def of(group: Group, learner: Learner) -> OpenGroup:
        parameters = group.parameters(learner)
        optimizer = group.optimizer(list(parameters.values()))
        return OpenGroup(group, parameters, optimizer, [entry["lr"] for entry in optimizer.param_groups])

    def step(self, step: int) -> None:
        """One optimizer step at the rate that the schedule gives for `step`."""
        if self.group.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.group.clip_norm)
        for entry, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            entry["lr"] = rate * self.group.schedule(step)
        self.optimizer.step()


@dataclass
class PhaseInProgress:
    """Everything that changes while a phase is trained; hence everything that a checkpoint of it holds."""

    learner: Learner
    groups: dict[str, OpenGroup]
    state: State
    step: int = 0
    """Updates completed in this phase."""

    @staticmethod
    def begin(phase: Phase, learner: Learner) -> PhaseInProgress:
        """At step 0. Freezes what no group names."""
        groups = {name: OpenGroup.of(group, learner) for name, group in phase.groups.items()}
        trained = {id(p) for group in groups.values() for p in group.parameters.values()}
        for parameter in learner.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        return PhaseInProgress(learner, groups, phase.state())

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        optimizers = {f"optimizer.{name}": pack_optimizer(g.optimizer)[0] for name, g in self.groups.items()}
        return {"learner": self.learner.state_dict(), "state": self.state, **optimizers}

    def values(self) -> dict[str, object]:
        return {
            "step": self.step,
            "optimizers": {name: pack_optimizer(g.optimizer)[1] for name, g in self.groups.items()},
        }

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, object]) -> None:
        self.learner.load_state_dict(dict(tensors["learner"]))
        self.state = dict(tensors["state"])
        optimizers = values["optimizers"]
        assert isinstance(optimizers, Mapping)
        for name, group in self.groups.items():
            unpack_optimizer(group.optimizer, tensors[f"optimizer.{name}"], optimizers[name])
        self.step = int(str(values["step"]))


@dataclass(frozen=True)
class Surroundings:
    """What the loop is given from outside."""

    device: torch.device
    stream: tuple[Name, ...]
    """Names of this replica's random stream in this phase."""
    mailbox: Mailbox | None
    should_stop: Callable[[], bool]
    before_step: Callable[[int], None]
    after_step: Callable[[int, Mapping[str, Tensor]], None]
    """Called with the number of completed updates and the statistics of the last one."""


def train_phase(
    phase: Phase,
    work: PhaseInProgress,
    batches: Callable[[int], Batch],
    teachers: Mapping[str, Teacher],
    around: Surroundings,
) -> Generator[int]:
    """Train from `work.step` to the end of the phase.

    Yields twice a step, after publishing and after training, where replicas of one process let each other take their
    turn: all publish, then all read and train.
    Raises `StopRequested` between steps, `TrainingDiverged`, and `ValueError` when a group names what no loss reaches.
    """
    for step in range(work.step, phase.steps):
        around.before_step(step)
        if around.should_stop():
            raise StopRequested
        if around.mailbox is not None and phase.publish is not None:
            around.mailbox.publish(step, work.learner[phase.publish.part])
        yield step
        for teacher in teachers.values():
            teacher.before_step(step)
        seed_everything(*around.stream, step)
        batch = batches(step).to(around.device)
        targets = {name: teacher.outputs(batch) for name, teacher in teachers.items()}
        stats: dict[str, Tensor] = {}
        work.learner.train()
        for update in phase.updates:
            work.learner.zero_grad(set_to_none=True)
            loss = update.loss(Step(step, batch, work.learner, targets, work.state, around.stream))
            loss.value.backward()
            if step == 0:
                _check_reach({name: work.groups[name] for name in update.trains})
            for name in update.trains:
                work.groups[name].step(step)
            stats.update({"train/loss": loss.value.detach(), **loss.stats})
        work.state = phase.adapt(work.state, stats)
        work.step = step + 1
        around.after_step(work.step, stats)
        yield step


def finite(stats: Mapping[str, Tensor], step: int) -> dict[str, float]:
    """The statistics as numbers; raises `TrainingDiverged` when the loss is not one."""
    numbers = {name: float(value) for name, value in stats.items()}
    if not math.isfinite(numbers["train/loss"]):
        raise TrainingDiverged(
            f"the loss after step {step} is {numbers['train/loss']}; lower the learning rate or set training.clip_norm"
        )
    return numbers


def _check_reach(groups: Mapping[str, OpenGroup]) -> None:
    for name, group in groups.items():
        unreached = [key for key, parameter in group.parameters.items() if parameter.grad is None]
        if unreached:
            raise ValueError(f"group '{name}' trains {', '.join(unreached)}, but no loss reaches it")
