"""Everything that changes while a phase is trained; hence everything that a checkpoint of it holds."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from codistill.checkpoint import pack_optimizer, unpack_optimizer
from codistill.companion import Companion, Teacher
from codistill.compiler_absent import compiler_absent
from codistill.moving_average import MovingAverage
from codistill.phase import Group, Learner, Phase, State

log = logging.getLogger(__name__)


@dataclass
class OpenGroup:
    """A group with its parameters and its optimizer."""

    group: Group
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    base_rates: list[float]
    base_decays: list[float]

    @staticmethod
    @compiler_absent()
    def of(group: Group, learner: Learner) -> OpenGroup:
        parameters = group.parameters(learner)
        optimizer = group.optimizer(list(parameters.values()))
        rates = [entry["lr"] for entry in optimizer.param_groups]
        decays = [entry.get("weight_decay", 0.0) for entry in optimizer.param_groups]
        return OpenGroup(group, parameters, optimizer, rates, decays)

    @property
    def is_reached(self) -> bool:
        """Whether the backward pass gave any of its parameters a gradient."""
        return any(parameter.grad is not None for parameter in self.parameters.values())

    @compiler_absent()
    def step(self, step: int, scaler: GradScaler) -> None:
        """One optimizer step at the learning rate and weight decay that the schedules give for `step`."""
        scaler.unscale_(self.optimizer)
        if self.group.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.group.clip_norm)
        rate, decay = self.group.schedule(step), self.group.decay_schedule(step)
        entries = zip(self.optimizer.param_groups, self.base_rates, self.base_decays, strict=True)
        for entry, base_rate, base_decay in entries:
            entry["lr"] = base_rate * rate
            if "weight_decay" in entry:
                entry["weight_decay"] = base_decay * decay
        scaler.step(self.optimizer)

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back the optimizer's state, but not its settings, which are the spec's; that of another kind of
        optimizer, out of a job that this one is a fork of, is left behind."""
        settings = [{key: value for key, value in e.items() if key != "params"} for e in self.optimizer.param_groups]
        if set(values["param_groups"][0]) - {"params"} != set(settings[0]):
            log.info("the optimizer is of another kind than that of the checkpoint, and begins anew")
            return
        unpack_optimizer(self.optimizer, tensors, values)
        for entry, own in zip(self.optimizer.param_groups, settings, strict=True):
            entry.update(own)


@dataclass
class PhaseInProgress:
    """A phase as far as it has been trained."""

    learner: Learner
    groups: dict[str, OpenGroup]
    state: State
    average: MovingAverage | None = None
    """The moving average of the learner's weights, if one is kept."""
    teachers: dict[str, Teacher] = field(default_factory=dict[str, Teacher])
    rules: dict[str, Companion] = field(default_factory=dict[str, Companion])
    scaler: GradScaler = field(default_factory=lambda: GradScaler("cpu", enabled=False))
    step: int = 0
    """Updates completed in this phase."""
    reach_checked: bool = False
    """Whether losses have been seen to reach all that they train."""

    @staticmethod
    def begin(
        phase: Phase, learner: Learner, *, ema_decay: float | None = None, scaler: GradScaler | None = None
    ) -> PhaseInProgress:
        """At step 0. Freezes what no group names."""
        groups = {name: OpenGroup.of(group, learner) for name, group in phase.groups.items()}
        trained = {id(p) for group in groups.values() for p in group.parameters.values()}
        for parameter in learner.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        work = PhaseInProgress(learner, groups, phase.state())
        if ema_decay is not None:
            work.average = MovingAverage(learner, ema_decay)
        if scaler is not None:
            work.scaler = scaler
        return work

    @property
    def served(self) -> Learner:
        """What is evaluated and exported: the average where there is one."""
        return self.learner if self.average is None else self.average.module

    @property
    def companions(self) -> dict[str, Companion]:
        """Teachers and exchange rules that are open."""
        return {**self.teachers, **self.rules}

    @property
    def is_finite(self) -> bool:
        """Whether all numbers that a checkpoint holds of the learner are. Where they are, its device is waited for
        once."""
        held = [tensor for tensor in self.learner.state_dict().values() if tensor.is_floating_point()]
        if bool(nn.utils.get_total_norm(held).isfinite()):
            return True
        # The squares alone may have been too large; and a buffer may be minus infinity on purpose, as a mask is.
        weights = all(bool(tensor.isfinite().all()) for tensor in self.learner.parameters())
        return weights and all(bool((tensor < math.inf).all()) for tensor in held)

    def clear_gradients(self) -> None:
        """Of all that is trained; what is frozen has none."""
        for group in self.groups.values():
            for parameter in group.parameters.values():
                parameter.grad = None

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        optimizers = {f"optimizer.{name}": pack_optimizer(g.optimizer)[0] for name, g in self.groups.items()}
        average = {} if self.average is None else {"average": self.average.state_dict()}
        companions = {f"companion.{name}": held for name, one in self.companions.items() if (held := one.tensors())}
        return {"learner": self.learner.state_dict(), "state": self.state, **average, **optimizers, **companions}

    def values(self) -> dict[str, object]:
        return {
            "step": self.step,
            "optimizers": {name: pack_optimizer(g.optimizer)[1] for name, g in self.groups.items()},
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(dict(tensors["learner"]))
        self.state = dict(tensors["state"])
        for name, group in self.groups.items():
            group.restore(tensors[f"optimizer.{name}"], values["optimizers"][name])
        if self.average is not None:
            self.average.load_state_dict(tensors["average"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(dict(values["scaler"]))
        self.step = int(values["step"])

    def restore_companions(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Once they are open, which they are with the learner as it was."""
        for name, companion in self.companions.items():
            companion.restore(tensors.get(f"companion.{name}", {}))
