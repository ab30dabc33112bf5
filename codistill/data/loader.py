"""From a split to training batches: the batch of a step is a pure function of the step, whoever makes it.

torch's `DataLoader` brings worker processes, prefetching and pinned memory; here it is given the numbers of the steps
as its samples, so that order, resumption and augmentation do not know how many workers there are.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from codistill.batch import Batch
from codistill.data.order import order_of
from codistill.data.split import Split
from codistill.phase import Replica
from codistill.spec import DataMode, Loader

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

    def __call__(self, step: int) -> Batch:
        ids = self.order(step).chunk(self.ranks)[self.rank]
        return self.split.read(ids, ("augment", self.seed, step))


def training_batches(split: Split, mode: DataMode, replica: Replica, batch_size: int) -> TrainingBatches:
    """What `replica` trains on, in batches of `batch_size` samples over all its ranks."""
    order = order_of(mode, split.ids, batch_size, replica=replica.index, replicas=replica.count, seed=replica.seed)
    return TrainingBatches(split, order, replica.seed, replica.rank, replica.ranks)


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

    def __getitem__(self, step: int) -> Batch:
        return self.batches(step)
