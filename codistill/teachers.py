"""Where targets come from.

A *source* is a frozen description; opened for one replica it becomes a *teacher*, which has state. A teacher answers a
list of outputs; an empty list means that nobody is there and the term is off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from codistill.batch import Batch, Outputs
from codistill.exchange.peers import Held, Mailbox
from codistill.exchange.weights import hold
from codistill.randomness import unseen


@dataclass(frozen=True)
class Opening:
    """What a source may use when it opens."""

    build_part: Callable[[str], nn.Module]
    """A fresh module of the learner's part of that name, on the replica's device."""
    mailbox: Mailbox | None
    """The replica's end of the exchange; None for a method that publishes nothing."""


class TeacherSource(Protocol):
    """A description of a teacher."""

    @property
    def name(self) -> str: ...

    def open(self, opening: Opening) -> Teacher: ...


class Teacher(Protocol):
    """An open source."""

    def before_step(self, step: int) -> None:
        """Take up what is new. All ranks of a replica take up the same at the same step."""
        ...

    def outputs(self, batch: Batch) -> Sequence[Outputs]:
        """What each teacher present says of the batch, without gradient, leaving no trace in the student."""
        ...

    def report(self) -> list[dict[str, Any]]:
        """Who is heard now, and how old they are, for the heartbeat."""
        ...


@dataclass(frozen=True)
class Peers:
    """Stale copies of other replicas, evaluated here on this replica's own batches (Anil et al. 2018)."""

    name: str = "peers"
    part: str = "net"
    view: str = "x"

    def open(self, opening: Opening) -> Teacher:
        if opening.mailbox is None:
            raise ValueError(f"teacher '{self.name}' learns from peers, but the phase has no publish rule")
        return PeerTeachers(self, opening.mailbox, opening.build_part)


class PeerTeachers:
    """One module per peer heard so far, its parameters mapped onto the newest snapshot of that peer."""

    def __init__(self, source: Peers, mailbox: Mailbox, build_part: Callable[[str], nn.Module]) -> None:
        self._source, self._mailbox, self._build_part = source, mailbox, build_part
        self._modules: dict[int, nn.Module] = {}
        self._heard: list[Held] = []

    def before_step(self, step: int) -> None:
        self._heard = self._mailbox.read(step)
        for held in self._heard:
            peer = held.header.id.replica
            if peer not in self._modules:
                self._modules[peer] = self._build_part(self._source.part).eval().requires_grad_(False)
            if held.is_new:
                hold(self._modules[peer], held.arrays)

    def outputs(self, batch: Batch) -> Sequence[Outputs]:
        answers: list[Outputs] = []
        for held in self._heard:
            module = self._modules[held.header.id.replica]
            with unseen(module):
                answers.append(module(batch.views[self._source.view]))
        return answers

    def report(self) -> list[dict[str, Any]]:
        return [held.as_json() for held in self._heard]
