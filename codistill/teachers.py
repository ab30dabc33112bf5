"""Where targets come from.

A *source* is a frozen description; opened for one replica it becomes a *teacher*, which has state. A teacher answers a
list of outputs; an empty list means that nobody is there and the term is off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from codistill.batch import Batch, Outputs, as_outputs
from codistill.companion import Opening, Teacher
from codistill.exchange.clock import PublishRule
from codistill.exchange.predictions import Form
from codistill.peers import PeerTeachers
from codistill.prediction_teachers import PredictionTeachers
from codistill.randomness import Name, unseen


class TeacherSource(Protocol):
    """A description of a teacher."""

    @property
    def name(self) -> str: ...

    def open(self, opening: Opening) -> Teacher: ...


@dataclass(frozen=True)
class Peers:
    """Stale copies of other replicas, evaluated here on this replica's own batches (Anil et al. 2018)."""

    publish: PublishRule
    name: str = "peers"
    part: str = "net"
    view: str = "x"

    def open(self, opening: Opening) -> PeerTeachers:
        shown = opening.learner[self.part]

        def build(peer: int) -> nn.Module:
            return opening.build_part(self.part, peer)

        return PeerTeachers(
            opening.open_mailbox(shown, self.publish, build if opening.mixed else None),
            shown,
            build,
            lambda module, batch: as_outputs(module(batch.views[self.view])),
            start_together_s=opening.start_together_s,
            mixed=opening.mixed,
        )


@dataclass(frozen=True)
class PeerPredictions:
    """What other replicas predicted when they last trained on the samples of a batch."""

    publish: PublishRule
    form: Form
    teachers_in: Callable[[int], tuple[int, ...]]
    """Whose turn it is to teach in a step."""
    stream: tuple[Name, ...]
    """Names of the replica's random stream for what it draws."""
    max_age_steps: int | None = None
    """Own steps since a prediction was made (by the peer's count) after which it is not heard."""
    name: str = "peers"

    def open(self, opening: Opening) -> PredictionTeachers:
        return PredictionTeachers(
            opening.open_predictions(self.form, self.publish),
            self.form,
            self.publish,
            self.teachers_in,
            opening.ranks,
            stream=self.stream,
            max_age_steps=self.max_age_steps,
            start_together_s=opening.start_together_s,
        )


@dataclass(frozen=True)
class Frozen:
    """Models that do not change: of an earlier phase, or of jobs that have ended."""

    models: Sequence[Callable[[Opening], nn.Module]]
    """Give the teachers, which share nothing with what is still trained."""
    name: str = "teacher"
    view: str = "x"
    stand_in: Callable[[], nn.Module] | None = None
    """What a teacher is taken to be where costs are told and it is not there; left out, the student."""

    def open(self, opening: Opening) -> FrozenTeacher:
        models = [opening.place(build(opening)).requires_grad_(False) for build in self.models]
        return FrozenTeacher(models, self.view)


@dataclass(frozen=True)
class FrozenTeacher(Teacher):
    """Models in evaluation, for good."""

    models: Sequence[nn.Module]
    view: str

    def outputs(self, batch: Batch) -> Sequence[Outputs]:
        return [self._ask(model, batch) for model in self.models]

    def _ask(self, model: nn.Module, batch: Batch) -> Outputs:
        with unseen(model):
            return as_outputs(model(batch.views[self.view]))
