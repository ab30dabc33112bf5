"""What goes with a learner through a phase: teachers, which answer, and exchange rules, which write into it.

Both begin as frozen descriptions and are opened for one replica.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from codistill.batch import Batch, Outputs
from codistill.exchange.clock import PublishRule
from codistill.exchange.mailbox import MailboxLike
from codistill.exchange.predictions import Form, Rows
from codistill.exchange.weights import OfPeer
from codistill.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Opening:
    """What a description may use when it opens."""

    learner: nn.ModuleDict
    """The replica's own parts, as they are trained."""
    finished: Mapping[str, nn.ModuleDict]
    """The learners of the phases before, by name, as they ended; to be read only."""
    build_part: Callable[[str, int], nn.Module]
    """A fresh module of that name of the learner of a replica, on this replica's device."""
    place: Callable[[nn.Module], nn.Module]
    """Puts a module where the replica computes, compiled where that is asked for."""
    open_mailbox: Callable[[nn.Module, PublishRule, OfPeer | None], MailboxLike[nn.Module]]
    """The replica's end of the exchange, for the module it shows; it expects ones like it of its peers, or like those
    that are built for each of them."""
    open_predictions: Callable[[Form, PublishRule], MailboxLike[Sequence[Rows]]]
    """The same, for predictions."""
    storage: Path
    """Where the runs of other jobs lie."""
    start_together_s: float = 0.0
    ranks: Ranks = ALONE
    mixed: bool = False
    """Whether replicas train models that differ in more than their weights."""


class Companion:
    """By itself it does nothing. All ranks of a replica call everything at the same steps; steps count within the
    phase."""

    def begin(self, step: int) -> None:
        """Training is about to go on from `step` completed updates."""

    def before_step(self, step: int) -> None:
        """Take up what is new. All ranks of a replica take up the same at the same step."""

    def listen(self, batch: Batch, said: Outputs) -> None:
        """What the student has just said of (a part of) the step's batch, still with its gradient."""

    def after_step(self, step: int) -> None:
        """Step `step` has been completed."""

    def report(self) -> Sequence[Mapping[str, Any]]:
        """Who is heard now, and how old they are, for the heartbeat."""
        return ()

    def tensors(self) -> Mapping[str, Tensor]:
        """What a checkpoint must hold of it."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave, before `begin`."""

    def forget_attempts(self) -> None:
        """What was restored is of another job, whose fences and incarnations of peers say nothing in this one."""

    def close(self, finished_at: int | None = None) -> None:
        """Nothing more will be asked; `finished_at` steps when the phase has come to its end."""


class Teacher(Companion, ABC):
    """One that answers: an open teacher source."""

    @abstractmethod
    def outputs(self, batch: Batch) -> Sequence[Outputs]:
        """What each teacher present says of the batch, without gradient, leaving no trace in the student; empty when
        nobody is there."""


class ExchangeRule(Protocol):
    """A description of what writes into the learner from outside: averaging with peers, say, where no loss does.

    What it opens into is asked `before_step` once more after the last step, since that belongs to the model.
    """

    @property
    def name(self) -> str: ...

    def open(self, opening: Opening) -> Companion: ...
