"""Opens what goes with the learner of a phase, for one replica: its teachers and its exchange rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from codistill.companion import Opening
from codistill.exchange.clock import PublishRule
from codistill.exchange.currency import Currency
from codistill.exchange.mailbox import MailboxLike
from codistill.exchange.opening import Member, OpenMailbox, Shown
from codistill.exchange.prediction_records import OfPredictions
from codistill.exchange.weights import OfWeights
from codistill.methods import phase_of
from codistill.phase import Artifacts, Phase
from codistill.spec import JobSpec
from codistill.work import PhaseInProgress


@dataclass(frozen=True)
class Opener:
    """A replica's, for all its phases."""

    spec: JobSpec
    member: Member
    opens_mailbox: OpenMailbox
    place: Callable[[nn.Module], nn.Module]
    """Puts a module where the replica computes, compiled where that is asked for."""

    def open(self, phase: Phase, work: PhaseInProgress, before: Artifacts) -> None:
        """Open the teachers and rules of `phase` into `work`; `before` are the learners of the phases before."""
        exchange = self.spec.exchange
        opening = Opening(
            learner=work.learner,
            finished=before.learners,
            storage=self.member.run.storage,
            place=self.place,
            build_part=lambda part, replica: self._build_part(phase, part, replica, before),
            open_mailbox=lambda shown, rule, of_peer: self.open_mailbox(
                OfWeights(shown, exchange.precision, of_peer=of_peer), rule
            ),
            open_predictions=lambda form, rule: self.open_mailbox(OfPredictions(form), rule),
            start_together_s=exchange.start_together_s,
            ranks=self.member.ranks,
            mixed=bool(self.spec.recipes),
        )
        for source in phase.teachers:
            work.teachers[source.name] = source.open(opening)
        for rule in phase.rules:
            work.rules[rule.name] = rule.open(opening)

    def open_mailbox(self, currency: Currency[Shown], rule: PublishRule) -> MailboxLike[Shown]:
        """The replica's end of the exchange, for what `currency` says."""
        return self.opens_mailbox(
            self.member,
            self.spec.exchange,
            currency,
            rule,
            checkpoint_interval_steps=self.spec.training.checkpoint_interval_steps,
            timeout_s=self.spec.limits.lockstep_timeout_s,
        )

    def _build_part(self, phase: Phase, part: str, replica: int, before: Artifacts) -> nn.Module:
        if self.spec.recipes and replica != self.member.me.replica:
            phase = phase_of(self.spec, replica, phase.name)
        return self.place(phase.learner(before)[part])
