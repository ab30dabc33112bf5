"""Which samples a replica sees in which step: a pure function of seed, replica and step, resumable at any of them."""

from __future__ import annotations

from functools import lru_cache
from typing import assert_never

import torch
from torch import Tensor

from codistill.randomness import generator
from codistill.spec import DataMode, Disjoint, Overlap, SameOrder, SameSet


def own_samples(mode: DataMode, ids: Tensor, *, replica: int, replicas: int, seed: int) -> Tensor:
    """The ids, out of `ids` [n], that this replica trains on, ascending.

    Disjoint parts differ in size by one at most. With overlap r, round(r * n) samples are common to all and the others
    are dealt out as disjoint parts, so that a replica has about n * (r + (1 - r) / replicas).
    """
    match mode:
        case SameOrder() | SameSet():
            return ids
        case Disjoint():
            common = 0
        case Overlap():
            common = round(mode.ratio * len(ids))
        case _:
            assert_never(mode)
    shuffled = ids[torch.randperm(len(ids), generator=generator("partition", seed))]
    return torch.cat([shuffled[:common], shuffled[common:][replica::replicas]]).sort().values


class Order:
    """An endless walk over samples, each epoch in a fresh order, cut into batches that may span two epochs."""

    def __init__(self, ids: Tensor, batch_size: int, *stream: int | str) -> None:
        self._ids, self._batch_size, self._stream = ids, batch_size, stream
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def __call__(self, step: int) -> Tensor:
        """Sample ids [batch_size] of batch `step`."""
        position = step * self._batch_size
        parts: list[Tensor] = []
        missing = self._batch_size
        while missing:
            epoch, start = divmod(position, len(self._ids))
            part = self._epoch(epoch)[start : start + missing]
            parts.append(part)
            position += len(part)
            missing -= len(part)
        return torch.cat(parts)

    def __reduce__(self) -> tuple[type[Order], tuple[object, ...]]:
        return Order, (self._ids, self._batch_size, *self._stream)

    def _shuffled(self, epoch: int) -> Tensor:
        return self._ids[torch.randperm(len(self._ids), generator=generator("order", *self._stream, epoch))]


def order_of(
    mode: DataMode, ids: Tensor, batch_size: int, *names: str, replica: int, replicas: int, seed: int
) -> Order:
    """The order in which this replica sees its samples, another one for other `names`; raises `ValueError` when there
    are fewer than a batch."""
    own = own_samples(mode, ids, replica=replica, replicas=replicas, seed=seed)
    if batch_size > len(own):
        raise ValueError(
            f"training.batch_size ({batch_size}) exceeds the {len(own)} training samples of one replica; lower it"
        )
    stream = (seed,) if isinstance(mode, SameOrder) else (seed, replica)
    return Order(own, batch_size, *stream, *names)
