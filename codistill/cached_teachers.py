"""Teachers that do not change, asked once for each sample: what they say is joined with batches by sample id.

All is worked out before the first step, in a fixed order: a sample's prediction then depends neither on the batch in
which it is met nor on the step from which a killed run goes on. It is kept in the host's memory by each rank, and not
in checkpoints.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from codistill.batch import Batch, Outputs
from codistill.companion import Opening, Teacher
from codistill.data.split import EVALUATION_BATCH_SIZE, Split
from codistill.teachers import Frozen, FrozenTeacher

MOST_BYTES = 2**30
"""Of what is kept."""
LOOKED_AT = 64
"""Samples that are read twice, to see whether they look alike."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cached:
    """The models of `of`, shown each sample once."""

    of: Frozen
    samples: Callable[[], tuple[Split, Tensor]]
    """A split, and the ids [n] of it that batches are made of, ascending."""

    @property
    def name(self) -> str:
        return self.of.name

    def open(self, opening: Opening) -> CachedTeacher:
        """Raises `ValueError` for a split that shows a sample in various ways."""
        split, ids = self.samples()
        few = ids[:LOOKED_AT]
        plain, trained = split.read(few), split.read(few, ("cache",))
        if not torch.equal(plain.views[self.of.view], trained.views[self.of.view]):
            raise ValueError(
                "method.cache_predictions keeps one prediction for each sample, and this recipe shows a sample in"
                " another random way each time; leave it out, or the recipe's augmentation"
            )
        device = next(opening.learner.parameters()).device
        return CachedTeacher(self.of.open(opening), split, ids, device)


@dataclass
class CachedTeacher(Teacher):
    """Answers log-probabilities, for the samples `ids` [n] alone."""

    _asked: FrozenTeacher | None
    _split: Split
    _ids: Tensor
    _device: torch.device
    _known: Sequence[Tensor] = field(default=(), init=False)
    """Of each model, [n, ..., classes]."""

    def begin(self, step: int) -> None:
        """Ask the models, and let go of them. Raises `ValueError` when their answers would not fit."""
        if self._asked is None:
            return
        blocks = self._ids.split(EVALUATION_BATCH_SIZE)
        for at, ids in enumerate(blocks):
            answers = self._asked.outputs(self._split.read(ids).to(self._device))
            said = [_log_probabilities(answer["logits"]) for answer in answers]
            if not at:
                refuse_large(len(said), len(self._ids), said[0][0].numel())
                self._known = [torch.empty(len(self._ids), *one.shape[1:]) for one in said]
            rows = slice(at * EVALUATION_BATCH_SIZE, at * EVALUATION_BATCH_SIZE + len(ids))
            for known, one in zip(self._known, said, strict=True):
                known[rows] = one
        log.info(
            "%d predictions of %d teachers are kept: %d bytes",
            len(self._ids), len(self._known), sum(known.nbytes for known in self._known),
        )  # fmt: skip
        self._asked = None

    def outputs(self, batch: Batch) -> Sequence[Outputs]:
        ids = batch.ids.cpu()
        rows = torch.searchsorted(self._ids, ids).clamp(max=len(self._ids) - 1)
        if not torch.equal(self._ids[rows], ids):
            raise KeyError("a batch has samples whose predictions were not worked out")
        return [{"logits": known[rows].to(batch.ids.device)} for known in self._known]


def refuse_large(teachers: int, samples: int, numbers: int) -> None:
    """Raise `ValueError` where predictions of `numbers` numbers each would not fit."""
    size = 4 * teachers * samples * numbers
    if size > MOST_BYTES:
        raise ValueError(
            f"method.cache_predictions would keep {teachers} x {samples:,} predictions of {numbers:,} numbers,"
            f" {size:,} bytes; at most {MOST_BYTES:,} are kept: leave it out, lower recipe.train_size, or name fewer"
            " teachers"
        )


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1).cpu()
