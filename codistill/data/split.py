"""Splits: samples that can be read by id, in any order, by any process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from codistill.batch import Batch
from codistill.randomness import Name, hashes

SplitName = Literal["train", "validation", "test"]
EVALUATION_BATCH_SIZE = 256


class Split(Protocol):
    """One part of a data set. It pickles, since loader workers get a copy: what is large is read by them."""

    @property
    def ids(self) -> Tensor:
        """Ids [n] int64 of its samples, ascending; no two splits of a data set share one."""
        ...

    def read(self, ids: Tensor, stream: tuple[Name, ...] | None = None) -> Batch:
        """These samples, in this order.

        With `stream` (training) they may be augmented, each by a random stream of its own: names, sample id. So what a
        sample looks like depends neither on its neighbours in the batch nor on who reads it.
        """
        ...


@dataclass(frozen=True)
class TensorSplit:
    """Samples held in memory: row i of every tensor is the sample `ids[i]`."""

    ids: Tensor
    y: Tensor
    views: Mapping[str, Tensor]
    augment: Callable[[Tensor, Tensor, tuple[Name, ...]], Tensor] | None = None
    """From view `x` [N, ...], ids [N] and the names of a random stream to the view as it is trained on."""
    _rows: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not bool((self.ids[1:] > self.ids[:-1]).all()):
            raise ValueError("the ids of a split must ascend, and each may occur once")
        sizes = {len(self.ids), len(self.y), *(len(view) for view in self.views.values())}
        if len(sizes) > 1:
            raise ValueError(f"ids, y and views of a split must have the same length, they have {sorted(sizes)}")
        object.__setattr__(self, "_rows", torch.arange(len(self.ids)))

    def read(self, ids: Tensor, stream: tuple[Name, ...] | None = None) -> Batch:
        rows = torch.searchsorted(self.ids, ids)
        views = {name: view[rows] for name, view in self.views.items()}
        if stream is not None and self.augment is not None:
            views["x"] = self.augment(views["x"], ids, stream)
        return Batch(ids=ids, y=self.y[rows], views=views)


@dataclass(frozen=True)
class Part:
    """Some samples of a split."""

    whole: Split
    ids: Tensor

    def read(self, ids: Tensor, stream: tuple[Name, ...] | None = None) -> Batch:
        return self.whole.read(ids, stream)


def check_none_is_empty(split: Callable[[SplitName], Split]) -> None:
    """Looks at all splits before anything is trained: the last of them is asked for once all is trained. Raises
    `ValueError` for one without samples, and what asking for one raises."""
    for name in get_args(SplitName):
        if len(split(name).ids) == 0:
            raise ValueError(
                f"the data have no samples of split '{name}'; to train and to evaluate takes some of 'train',"
                " 'validation' and 'test' each"
            )


def held_out(split: Split, size: int) -> tuple[Part, Part]:
    """What stays of a split when `size` of its samples are held out, and those; the same for every seed. Raises
    `ValueError` when nothing would stay."""
    if size >= len(split.ids):
        raise ValueError(f"{size} samples are to be held out of {len(split.ids)}, which leaves none; hold out fewer")
    out = draw_ids(split.ids, size, "held out")
    return Part(split, split.ids[~torch.isin(split.ids, out)]), Part(split, out)


def in_order(split: Split, batch_size: int = EVALUATION_BATCH_SIZE) -> Iterator[Batch]:
    """All samples of a split once, by ascending id, for evaluation."""
    return (split.read(ids) for ids in split.ids.split(batch_size))


def draw_ids(ids: Tensor, size: int | None, name: Name) -> Tensor:
    """`size` of `ids` [n], ascending: the same for every seed, so that runs can be compared; all when None.

    Raises `ValueError` when there are not as many.
    """
    if size is None or size == len(ids):
        return ids
    if size > len(ids):
        raise ValueError(f"{size} samples of '{name}' are asked for, the data set has {len(ids)}")
    # Ordered by a hash of the id rather than by a generator: the choice must not change with a library's version.
    lots = torch.from_numpy(hashes(ids, "draw", name).view("int64"))
    return ids[lots.argsort(stable=True)[:size]].sort().values
