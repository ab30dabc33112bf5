"""Where targets come from.

A *source* is a frozen description; opened for one replica it becomes a *teacher*, which has state. A teacher answers a
list of outputs; an empty list means that nobody is there and the term is off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from codistill.batch import Batch, Outputs, as_outputs
from codistill.exchange.clock import PublishRule
from codistill.exchange.mailbox import Mailbox
from codistill.peers import PeerTeachers


@dataclass(frozen=True)
class Opening:
    """What a source may use when it opens."""

    learner: nn.ModuleDict
    """The replica's own parts, as they are trained."""
    build_part: Callable[[str], nn.Module]
    """A fresh module of the learner's part of that name, on the replica's device."""
    open_mailbox: Callable[[nn.Module, PublishRule], Mailbox]
    """The replica's end of the exchange, for the module it shows and expects of its peers."""
    start_together_s: float = 0.0


class TeacherSource(Protocol):
    """A description of a teacher."""

    @property
    def name(self) -> str: ...

    def open(self, opening: Opening) -> Teacher: ...


class Teacher(Protocol):
    """An open source. All ranks of a replica call everything at the same steps."""

    def begin(self, step: int) -> None:
        """Training is about to go on from `step` completed updates."""
        ...

    def before_step(self, step: int) -> None:
        """Take up what is new. All ranks of a replica take up the same at the same step."""
        ...

    def outputs(self, batch: Batch) -> Sequence[Outputs]:
        """What each teacher present says of the batch, without gradient, leaving no trace in the student."""
        ...

    def after_step(self, step: int) -> None:
        """Step `step` has been completed."""
        ...

    def report(self) -> Sequence[Mapping[str, Any]]:
        """Who is heard now, and how old they are, for the heartbeat."""
        ...

    def close(self, finished_at: int | None = None) -> None:
        """Nothing more will be asked; `finished_at` steps when the phase has come to its end."""
        ...


@dataclass(frozen=True)
class Peers:
    """Stale copies of other replicas, evaluated here on this replica's own batches (Anil et al. 2018)."""

    publish: PublishRule
    name: str = "peers"
    part: str = "net"
    view: str = "x"

    def open(self, opening: Opening) -> PeerTeachers:
        shown = opening.learner[self.part]
        return PeerTeachers(
            opening.open_mailbox(shown, self.publish),
            shown,
            lambda: opening.build_part(self.part),
            lambda module, batch: as_outputs(module(batch.views[self.view])),
            start_together_s=opening.start_together_s,
        )
