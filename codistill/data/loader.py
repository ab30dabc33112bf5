"""From a split to training batches: the batch of a step is a pure function of the step, whoever makes it.

torch's `DataLoader` brings worker processes, prefetching and pinned memory; here it is given the numbers of the steps
as its samples, so that order, resumption and augmentation do not know how many workers there are.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from codistill.batch import Batch
from codistill.data.order import order_of
from codistill.data.split import Split
from codistill.phase import Replica
from codistill.spec import DataMode, Loader

BY_VALUE_BYTES = 1024**2
"""A batch up to this size is cheaper to copy through a pipe than to share."""

StepBatches = Callable[[int], Batch]
"""From a step to its batch; pure, and it pickles."""


@dataclass(frozen=True)
class TrainingBatches:
    """The batches of one rank: its share of what the replica sees in each step."""

    split: Split
    order: Callable[[int], torch.Tensor]
    seed: int
    rank: int = 0
    ranks: int = 1
    names: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    """Further views, each `x` augmented by a random stream of its own."""

    def __call__(self, step: int) -> Batch:
        ids = self.order(step).chunk(self.ranks)[self.rank]
        usual = self.split.read(ids, ("augment", self.seed, *self.names, step))
        others = {v: self.split.read(ids, ("augment", self.seed, *self.names, v, step)).views["x"] for v in self.views}
        return replace(usual, views={**usual.views, **others}) if others else usual

    def ids_until(self, steps: int) -> torch.Tensor:
        """All samples of the first `steps` batches, of all ranks, ascending."""
        pass_steps = -(-len(self.split.ids) // len(self.order(0)))  # after so many, each has been there
        return torch.cat([self.order(step) for step in range(min(steps, pass_steps))]).unique()


def training_batches(
    split: Split, mode: DataMode, replica: Replica, batch_size: int, *names: str, views: tuple[str, ...] = ()
) -> TrainingBatches:
    """What `replica` trains on, in batches of `batch_size` samples over all its ranks, with so many more `views`. With
    `names`, the same samples in another order and augmented otherwise."""
    who = replica
    order = order_of(mode, split.ids, batch_size, *names, replica=who.index, replicas=who.count, seed=who.seed)
    return TrainingBatches(split, order, who.seed, who.rank, who.ranks, names, views)


def read_ahead(batches: StepBatches, steps: range, loader: Loader, *, pin: bool = False) -> Iterator[Batch]:
    """The batches of `steps`, in order, made by worker processes if `loader` asks for them.

    With `pin` they lie in page-locked memory, from which copies to a GPU need not wait.
    """
    workers = loader.workers
    options: dict[str, Any] = {}
    if workers:
        # Not forked from here: threads of this process may hold locks. The server imports torch once for all.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "codistill.data.loader"])
        options = {
            "multiprocessing_context": context,
            "prefetch_factor": loader.prefetch_batches,
            "worker_init_fn": _end_with_parent,
        }
    made = DataLoader(
        cast("Dataset[Batch]", _Steps(batches)),
        batch_size=None,
        sampler=cast(Any, steps),
        num_workers=workers,
        pin_memory=pin,
        **options,
    )
    return iter(made)


def _end_with_parent(worker: int) -> None:
    """End this worker when the training process dies, however it dies. torch looks whether the parent of the process is
    still the same, which here is the fork server, and that lives as long as its workers do."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


@dataclass(frozen=True)
class _Steps:
    """Batches as a data set that is indexed by step."""

    batches: StepBatches

    def __getitem__(self, step: int) -> Batch | _ByValue:
        batch = self.batches(step)
        small = batch.nbytes <= BY_VALUE_BYTES
        return _ByValue(batch) if small and get_worker_info() is not None else batch


@dataclass(frozen=True)
class _ByValue:
    """A batch that leaves a worker through the pipe; what arrives is the batch.

    By itself torch opens a socket for every tensor, to pass a file descriptor of shared memory: milliseconds of the
    training thread, however small they are.
    """

    batch: Batch

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[object, ...]]:
        batch = self.batch
        views = {name: _packed(view) for name, view in batch.views.items()}
        return _unpacked_batch, (_packed(batch.ids), _packed(batch.y), views)


_Packed = tuple[npt.NDArray[np.uint8], torch.dtype, tuple[int, ...]]


def _packed(tensor: torch.Tensor) -> _Packed:
    # As bytes, since numpy does not know every type of torch's.
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy(), tensor.dtype, tuple(tensor.shape)


def _unpacked(packed: _Packed) -> torch.Tensor:
    values, dtype, shape = packed
    return torch.from_numpy(values).view(dtype).reshape(shape)


def _unpacked_batch(ids: _Packed, y: _Packed, views: Mapping[str, _Packed]) -> Batch:
    shown = {name: _unpacked(view) for name, view in views.items()}
    return Batch(ids=_unpacked(ids), y=_unpacked(y), views=shown)
