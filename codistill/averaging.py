"""Replicas that become their mean at every exchange: local SGD, and DiLoCo with an outer optimizer.

Every replica works out the mean by itself, from the same snapshots in the same order and hence to the same bits; there
is no server. Before step s, s a multiple of the interval, and after the last step:

    mean = 1/n * sum_i theta_i
    theta <- mean                                  (local SGD)
    theta <- theta' - lr * (g + momentum * v),     g = theta' - mean,  v <- momentum * v + g       (DiLoCo)

with theta' the weights that all had after the exchange before. What the optimizer of training holds is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codistill.companion import Companion, Opening
from codistill.exchange.clock import PublishRule
from codistill.exchange.mailbox import MailboxLike
from codistill.exchange.shelf import Held
from codistill.exchange.weights import published, tensors_of
from codistill.spec import TravelPrecision, replica_name

Weights = dict[str, Tensor]


class PeerMissing(RuntimeError):
    """A replica's weights cannot be had, and a mean without them would be another model than the peers'."""


def mean_of(replicas: Sequence[Mapping[str, Tensor]]) -> Weights:
    """Entry by entry, of what is floating-point, in float32 at least; added up in the order given, so that all get the
    same bits."""
    means: Weights = {}
    for name, first in replicas[0].items():
        if first.is_floating_point():
            means[name] = first.to(torch.promote_types(first.dtype, torch.float32), copy=True)
            for other in replicas[1:]:
                means[name] += other[name]
            means[name] /= len(replicas)
    return means


@dataclass(frozen=True)
class Outer:
    """Stochastic gradient descent with Nesterov's momentum, as torch computes it."""

    learning_rate: float
    momentum: float

    def step(self, before: Tensor, mean: Tensor, velocity: Tensor) -> Tensor:
        """From the weights after the exchange before, [...], and the replicas' mean to those after this exchange.
        `velocity`, zeros at first, is brought up to date in place."""
        gradient = before - mean
        velocity.mul_(self.momentum).add_(gradient)
        # before - lr * (gradient + momentum * velocity), but from the mean, which lr 1 and no momentum give to the bit.
        return mean + (1 - self.learning_rate) * gradient - (self.learning_rate * self.momentum) * velocity


@dataclass(frozen=True)
class Averaging:
    """All parts of the learner, every `interval_steps` and after the last of `steps`; buffers become their mean."""

    interval_steps: int
    steps: int
    replica: int
    """Who is averaging, of how many; the mailbox hears all the others."""
    replicas: int
    outer: Outer | None = None
    """Acts on the parameters; None takes over their mean."""
    precision: TravelPrecision = "fp32"
    """Of what travels, hence of every replica's part in the mean, its own too."""
    name: str = "averaging"

    @property
    def rule(self) -> PublishRule:
        return PublishRule(self.interval_steps, self.interval_steps, ends_at=self.steps)

    def open(self, opening: Opening) -> OpenAveraging:
        return OpenAveraging(self, opening.learner, opening.open_mailbox(opening.learner, self.rule, None))


class OpenAveraging(Companion):
    """The rule at work in one replica, in lockstep with its peers."""

    def __init__(self, how: Averaging, learner: nn.Module, mailbox: MailboxLike[nn.Module]) -> None:
        self._how, self._rule, self._learner, self._mailbox = how, how.rule, learner, mailbox
        self._before: Weights = {}
        self._velocity: Weights = {}
        if how.outer is not None:
            parameters = dict(learner.named_parameters())
            self._before = {name: p.detach().clone() for name, p in parameters.items()}
            self._velocity = {name: torch.zeros_like(p) for name, p in self._before.items()}
        self._exchanged_at = 0
        """Checkpoints are taken before and after an exchange of the same step; this tells them apart."""
        self._heard: Sequence[Held] = ()

    def begin(self, step: int) -> None:
        self._publish(step)

    def before_step(self, step: int) -> None:
        """Become the mean, when it is time. Waits for all peers; raises `PeerTimeout`, `StopRequested`, and
        `PeerMissing` when the snapshot of one did not pass the gate."""
        if not self._is_due(step):
            return
        self._heard = self._mailbox.read(step)
        by_replica = {held.header.id.replica: tensors_of(held.arrays) for held in self._heard}
        by_replica[self._how.replica] = tensors_of(published(self._learner, self._how.precision))
        missing = [replica_name(one) for one in range(self._how.replicas) if one not in by_replica]
        if missing:
            raise PeerMissing(
                f"the weights of {', '.join(missing)} after step {step} were refused (the ledger says why), and a mean"
                " without them would be another than theirs; training goes on from the last checkpoint"
            )
        self._write(mean_of([weights for _, weights in sorted(by_replica.items())]))
        self._exchanged_at = step

    def after_step(self, step: int) -> None:
        self._publish(step + 1)

    def report(self) -> list[Mapping[str, Any]]:
        return [held.as_json() for held in self._heard]

    def tensors(self) -> Mapping[str, Tensor]:
        return {
            "exchanged_at": torch.tensor(self._exchanged_at),
            **{f"before.{name}": weights for name, weights in self._before.items()},
            **{f"velocity.{name}": weights for name, weights in self._velocity.items()},
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._exchanged_at = int(tensors["exchanged_at"])
        for kind, held in (("before", self._before), ("velocity", self._velocity)):
            for name, weights in held.items():
                weights.copy_(tensors[f"{kind}.{name}"])

    def close(self, finished_at: int | None = None) -> None:
        self._mailbox.close()

    def _is_due(self, step: int) -> bool:
        return self._rule.due(step) and step != self._exchanged_at

    def _publish(self, step: int) -> None:
        if self._is_due(step):
            self._mailbox.publish(step, self._learner)

    def _write(self, mean: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, own in self._learner.state_dict(keep_vars=True).items():
                if name in mean:
                    own.copy_(self._after_outer(name, mean[name].to(own.device)))

    def _after_outer(self, name: str, mean: Tensor) -> Tensor:
        if self._how.outer is None or name not in self._before:
            return mean
        after = self._how.outer.step(self._before[name], mean, self._velocity[name])
        self._before[name].copy_(after)
        return after
