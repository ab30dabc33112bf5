"""A replica's peers, for any training loop: hear them, learn from them, show oneself.

`train_replica` uses this, and so can a loop of one's own, in three lines (see `codistill.own_loop.join`):

    peers = codistill.join(model, ...)
    for step, batch in enumerate(batches):
        loss = criterion(logits, labels) + peers.loss(batch, logits, step)
        ...
        peers.after_step(step)
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from codistill.batch import Outputs
from codistill.companion import Teacher
from codistill.divergence import pull
from codistill.exchange.mailbox import MailboxLike
from codistill.exchange.shelf import Held
from codistill.exchange.weights import hold
from codistill.randomness import unseen
from codistill.spec import Divergence

Forward = Callable[[nn.Module, Any], Outputs]
"""Shows a model a batch and returns its taps, `logits` [..., classes] among them."""


@dataclass(frozen=True)
class Pull:
    """How `loss` pulls towards the peers. Raises `ValueError` for a temperature that the divergence does not have."""

    weight: float = 1.0
    temperature: float = 1.0
    divergence: Divergence = "cross_entropy"

    def __post_init__(self) -> None:
        if self.divergence == "logit_regression" and self.temperature != 1:
            raise ValueError("divergence 'logit_regression' compares logits, which have no temperature; leave it out")


class PeerTeachers(Teacher):
    """A module for each peer that is heard, its parameters mapped onto the newest snapshot of that peer.

    `build` makes one for a peer; unless models are `mixed`, it fits every other peer as well.
    With several ranks, all call every method, at the same steps.
    """

    def __init__(
        self,
        mailbox: MailboxLike[nn.Module],
        model: nn.Module,
        build: Callable[[int], nn.Module],
        forward: Forward,
        *,
        mixed: bool = False,
        start_together_s: float = 0.0,
        pull: Pull = Pull(),
        on_close: Callable[[int | None], None] = lambda finished_at: None,
    ) -> None:
        self._mailbox, self._model, self._build, self._forward = mailbox, model, build, forward
        self._mixed = mixed
        self._start_together_s, self._pull, self._on_close = start_together_s, pull, on_close
        self.steps_done = 0
        self._modules: dict[int, nn.Module] = {}
        self._heard: list[Held] = []
        self._heard_at: int | None = None

    def begin(self, step: int) -> None:
        """Before this process's first step, `step` updates being done: publish if it is time, and at the very start of
        training wait for the peers to be there. Raises `StopRequested` when asked to stop meanwhile."""
        self.steps_done = step
        self._mailbox.publish(step, self._model)
        if step == 0:
            self._mailbox.await_peers(self._start_together_s)

    def before_step(self, step: int) -> None:
        """Take up what is new, for step `step`."""
        self._heard, self._heard_at = self._mailbox.read(step), step
        heard = {held.header.id.replica for held in self._heard}
        for held in self._heard:
            peer = held.header.id.replica
            is_fresh = peer not in self._modules
            if is_fresh:
                self._modules[peer] = self._free_module(peer, heard)
            if held.is_new or is_fresh:
                hold(self._modules[peer], held.arrays)

    def _free_module(self, peer: int, heard: Container[int]) -> nn.Module:
        """For `peer`: that of one who is not heard now, which lets go of its snapshot; a new one when there is none, or
        when that would not fit."""
        for other in self._modules:
            if other not in heard:
                free = self._modules.pop(other)
                if not self._mixed:
                    return free
                break
        return self._build(peer).eval().requires_grad_(False)

    def outputs(self, batch: Any) -> Sequence[Outputs]:
        """What each peer present says of the batch, without gradient; empty when nobody is there."""
        answers: list[Outputs] = []
        for held in self._heard:
            module = self._modules[held.header.id.replica]
            with unseen(module):
                answers.append(self._forward(module, batch))
        return answers

    def loss(self, batch: Any, logits: Tensor, step: int) -> Tensor:
        """The term to add to the loss of step `step`: a scalar, 0 while no peer is heard.

        weight * T^2 * CE(mean of the peers' distributions at T, softmax(logits / T)), as in Anil et al. 2018, or
        another `divergence` in the cross-entropy's place. With
        gradient accumulation, call it for each micro-batch.
        """
        if step != self._heard_at:
            self.before_step(step)
        said = self.outputs(batch)
        if not said:
            return logits.new_zeros(())
        temperature = self._pull.temperature
        teachers = [peer["logits"] for peer in said]
        return self._pull.weight * pull(self._pull.divergence, teachers, logits, temperature=temperature).loss

    def after_step(self, step: int) -> None:
        """Step `step` is done: publish the weights it led to if it is time."""
        self.steps_done = step + 1
        self._mailbox.publish(self.steps_done, self._model)

    def report(self) -> list[Mapping[str, Any]]:
        """Who is heard now, and how old they are."""
        return [held.as_json() for held in self._heard]

    def close(self, finished_at: int | None = None) -> None:
        """Leave the exchange; with `finished_at` steps done, leave the finished model to those still training."""
        try:
            if finished_at is not None:
                self._mailbox.publish_last(finished_at, self._model)
        finally:
            self._mailbox.close()
            self._on_close(finished_at)
