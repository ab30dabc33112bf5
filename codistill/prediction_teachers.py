"""Peers who send predictions instead of weights: what they said is joined with one's own batches by sample id.

What a replica says of a sample is what it predicted when it last trained on it: the forward of the training step
itself, so that it costs none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from codistill.batch import Batch, Outputs
from codistill.companion import Teacher
from codistill.exchange.clock import PublishRule
from codistill.exchange.mailbox import MailboxLike
from codistill.exchange.prediction_records import from_arrays, of_all_ranks
from codistill.exchange.prediction_table import PredictionTable, rows_of, tensors_of
from codistill.exchange.predictions import Form, Rows, packed
from codistill.exchange.shelf import Held
from codistill.exchange.snapshot import SnapshotId
from codistill.randomness import Name, uniforms
from codistill.ranks import Ranks
from codistill.run_dir import INHERITED_FENCE


class PredictionTeachers(Teacher):
    """A table for each peer, with the newest that it said of each sample.

    With several ranks, all call every method, at the same steps; each says what it has seen of the batch, and all have
    the same tables.
    """

    def __init__(
        self,
        mailbox: MailboxLike[Sequence[Rows]],
        form: Form,
        rule: PublishRule,
        teachers_in: Callable[[int], tuple[int, ...]],
        ranks: Ranks,
        *,
        stream: tuple[Name, ...],
        max_age_steps: int | None = None,
        start_together_s: float = 0.0,
    ) -> None:
        self._mailbox, self._form, self._rule, self._ranks = mailbox, form, rule, ranks
        self._teachers_in, self._stream = teachers_in, stream
        self._max_age_steps, self._start_together_s = max_age_steps, start_together_s
        self._tables: dict[int, PredictionTable] = {}
        self._taken: dict[int, SnapshotId] = {}
        """Of each peer the newest snapshot that is in its table."""
        self._said: list[tuple[int, Rows]] = []
        """What is to be published next, by the step in which it was said."""
        self._heard: list[Held] = []
        self._step = 0

    def begin(self, step: int) -> None:
        self._mailbox.publish(step, self._gathered())
        if step == 0:
            self._mailbox.await_peers(self._start_together_s)

    def before_step(self, step: int) -> None:
        self._step, self._heard = step, self._mailbox.read(step)
        for held in self._heard:
            who = held.header.id
            # Whoever comes back finds announced what it had taken before: older than what it knows.
            if who.replica not in self._taken or who > self._taken[who.replica]:
                self._table(who.replica).take(from_arrays(self._form, held.arrays))
                self._taken[who.replica] = who

    def outputs(self, batch: Batch) -> Sequence[Outputs]:
        """Of each peer whose turn it is: log-probabilities as `logits` [N, ..., classes], which samples [N] it was
        `found` to have spoken of, and the `age_steps` [N] of that; where `logits` are estimates from draws, also the
        `log_labels` [N, ...] that it said. Empty when no peer has said anything yet."""
        if self._rule.newest_due(self._step) is None:
            return []
        present = [peer for peer in self._teachers_in(self._step) if peer in self._tables]
        return [self._ask(self._tables[peer], batch) for peer in present]

    def _ask(self, table: PredictionTable, batch: Batch) -> Outputs:
        answers = table.look_up(batch.ids.cpu())
        ages, found = self._step - answers.made_at, answers.found
        if self._max_age_steps is not None:
            found = found & (ages <= self._max_age_steps)
        counters = self._mailbox.counters
        counters.predictions_found += int(found.sum())
        counters.predictions_missed += int((~found).sum())
        here = {"logits": answers.log_probabilities, "found": found, "age_steps": ages.masked_fill(~found, 0)}
        if answers.log_labels is not None:
            here["log_labels"] = answers.log_labels
        return {name: tensor.to(batch.ids.device) for name, tensor in here.items()}

    def listen(self, batch: Batch, said: Outputs) -> None:
        since = self._rule.gathered_from(self._step)
        self._said = [(step, rows) for step, rows in self._said if step >= since]
        if self._step < since:
            return
        ids = batch.ids.cpu()
        draws = None
        if self._form.kind == "sampled":
            draws = uniforms(ids, self._form.count * self._form.size, *self._stream, "draws", self._step)
        made_at = torch.full_like(ids, self._step)
        columns = packed(self._form, said["logits"], batch.y, draws)
        self._said.append((self._step, Rows(ids.numpy(), made_at.numpy(), columns)))

    def after_step(self, step: int) -> None:
        self._mailbox.publish(step + 1, self._gathered())

    def report(self) -> Sequence[Mapping[str, Any]]:
        """Of each peer the newest snapshot that has been taken."""
        return list({held.header.id.replica: held.as_json() for held in self._heard}.values())

    def tensors(self) -> Mapping[str, Tensor]:
        said = of_all_ranks(self._form, self._gathered(), self._ranks)
        everything = {"said": tensors_of(said)}
        for peer, table in self._tables.items():
            who = self._taken[peer]
            taken = torch.tensor([who.fence, who.incarnation, who.version])
            everything[f"{peer}"] = {**table.tensors(), "taken": taken}
        return {f"{whose}.{name}": held for whose, tensors in everything.items() for name, held in tensors.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        by_whom: dict[str, dict[str, Tensor]] = {}
        for key, held in tensors.items():
            whose, _, name = key.partition(".")
            by_whom.setdefault(whose, {})[name] = held
        said = by_whom.pop("said", None)
        if said is not None and self._ranks.leads:  # of all ranks; the first speaks for them
            rows = rows_of(said)
            self._said = [(step, rows.at(rows.made_at == step)) for step in sorted(set(rows.made_at.tolist()))]
        for peer, held in by_whom.items():
            fence, incarnation, version = held.pop("taken").tolist()
            self._taken[int(peer)] = SnapshotId(int(peer), fence, incarnation, version)
            self._table(int(peer)).restore(held)

    def forget_attempts(self) -> None:
        self._taken = {peer: replace(who, fence=INHERITED_FENCE, incarnation=0) for peer, who in self._taken.items()}

    def close(self, finished_at: int | None = None) -> None:
        try:
            if finished_at is not None:
                self._mailbox.publish_last(finished_at, self._gathered())
        finally:
            self._mailbox.close()

    def _gathered(self) -> list[Rows]:
        return [rows for _, rows in self._said]

    def _table(self, peer: int) -> PredictionTable:
        return self._tables.setdefault(peer, PredictionTable(self._form))
