"""What the product costs per step of training: `python -m tests.benchmarks.training`.

Framework tax: one replica as the product trains it (records, heartbeat, checkpoints, gates of the loop) beside a bare
PyTorch loop and the same loop under DistributedDataParallel, all on batches held in memory.
Data tax: a bare loop fed by the product's loader beside one on batches held in memory.
Everything runs on one thread of one core, in turns, within one process; loader workers have the other cores.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from codistill import training
from codistill.batch import Batch, as_outputs
from codistill.data.catalog import find_dataset
from codistill.data.home import DataError
from codistill.data.loader import read_ahead, training_batches
from codistill.exchange.transport import Connect, Hub, MemoryTransport
from codistill.phase import Replica
from codistill.randomness import Name
from codistill.recipes import Recipe, open_recipe
from codistill.recipes.own import OwnRecipe
from codistill.replica import replica_turns
from codistill.run_dir import RunDir
from codistill.spec import Loader, SameSet
from codistill.spec_errors import parse_spec
from tests.benchmarks.report import beside_first, interleaved, seconds, table

RECIPES = {
    "images, CNN": {"kind": "images", "shift_pixels": 2, "flip": True},
    "images, ResNet": {"kind": "images", "model": {"kind": "resnet"}, "shift_pixels": 2, "flip": True},
    "text, transformer": {"kind": "text"},
    "tabular, embeddings": {"kind": "tabular"},
}
STEP_S, CHUNK_S, ROUNDS, HELD = 0.02, 0.1, 60, 32
MANY_STEPS = 10**6


@dataclass
class Arm:
    """A training that goes on a few steps at a time."""

    advance: Callable[[], None]
    close: Callable[[], None] = lambda: None

    def chunk(self, steps: int) -> float:
        """Seconds per step of the next few."""
        return seconds(lambda: [self.advance() for _ in range(steps)]) / steps


def main() -> None:
    torch.set_num_threads(1)
    everywhere = os.sched_getaffinity(0)
    core = min(everywhere)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    head = ["recipe", "loop", "ms a step: median (range)", "of the bare loop's steps/s"]
    for name, recipe in available():
        os.sched_setaffinity(0, {core})
        size = batch_size(recipe)
        held = list(itertools.islice(batches(recipe, size, workers=0), HELD))
        framework = framework_rows(f"{name}, batch {size}", recipe, held, size)
        print(table("Framework tax (aim: product >= 0.97, and >= DDP)", head, framework), flush=True)
        os.sched_setaffinity(0, everywhere - {core} or everywhere)  # what is started now stays off the core
        feeds = {f"loader, {w} workers": batches(recipe, size, workers=w) for w in (0, 1)}
        for feed in feeds.values():
            next(feed)
        os.sched_setaffinity(0, {core})
        data = data_rows(f"{name}, batch {size}", recipe, held, feeds)
        print(table("Data tax (aim: >= 0.95)", head, data), flush=True)
    dist.destroy_process_group()


def available() -> Iterator[tuple[str, Recipe]]:
    for name, values in RECIPES.items():
        spec = parse_spec({"recipe": values, "method": {"kind": "solo"}, "replicas": {"count": 1}})
        try:
            find_dataset(getattr(spec.recipe, "data", ""))
        except DataError as missing:
            print(f"{name} is left out: {missing}", file=sys.stderr)
            continue
        yield name, open_recipe(spec)


def batches(recipe: Recipe, size: int, *, workers: int) -> Iterator[Batch]:
    made = training_batches(recipe.split("train"), SameSet(), Replica(0, 1, 0), size)
    return read_ahead(made, range(MANY_STEPS), Loader(workers=workers))


def batch_size(recipe: Recipe) -> int:
    """The smallest power of two, from 16 on, with which a step takes long enough."""
    size = 16
    while True:
        arm = bare(recipe, itertools.cycle(itertools.islice(batches(recipe, size, workers=0), 4)))
        arm.chunk(2)
        if arm.chunk(4) >= STEP_S:
            return size
        size *= 2


def bare(recipe: Recipe, feed: Iterator[Batch], wrap: Callable[[nn.Module], nn.Module] = lambda module: module) -> Arm:
    model = wrap(recipe.build_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def advance() -> None:
        batch = next(feed)
        optimizer.zero_grad(set_to_none=True)
        loss: Tensor = recipe.task_loss(as_outputs(model(batch.views["x"])), batch)
        loss.backward()
        optimizer.step()

    return Arm(advance)


@dataclass(frozen=True)
class HeldSplit:
    """A split whose batches lie ready in memory, whatever ids are asked for; of fewer ids the first of a batch."""

    held: Sequence[Batch]

    @property
    def ids(self) -> Tensor:
        return torch.arange(sum(map(len, self.held)))

    def read(self, ids: Tensor, stream: tuple[Name, ...] | None = None) -> Batch:
        whole, few = self.held[int(ids[0]) % len(self.held)], len(ids)
        if few >= len(whole):
            return whole
        return Batch(whole.ids[:few], whole.y[:few], {name: view[:few] for name, view in whole.views.items()})


def product(recipe: Recipe, held: Sequence[Batch], size: int, storage: Path) -> Arm:
    """One replica as `codistill run` trains it, with every default but the batch size."""
    spec = parse_spec(
        {
            "recipe": {"kind": "installed", "name": "benchmark"},
            "method": {"kind": "solo"},
            "replicas": {"count": 1},
            "training": {"steps": MANY_STEPS, "batch_size": size, "evaluate_interval_steps": MANY_STEPS},
        }
    )
    run = RunDir(storage, "benchmark")
    run.create(spec)
    run.start_attempt(1, 0.0)
    hub = Hub()
    return replica(run, 0, recipe, held, lambda scope: MemoryTransport(hub, 0, keep=scope.keep))


def replica(run: RunDir, index: int, recipe: Recipe, held: Sequence[Batch], connect: Connect) -> Arm:
    """A replica of `run` at its first step, on batches that lie ready."""
    split = HeldSplit(held)
    own = OwnRecipe(recipe.classes, recipe.build_model, lambda name: split, recipe.task_loss)
    training.open_recipe = lambda spec: own  # pyright: ignore[reportPrivateImportUsage]
    turns = replica_turns(run, fence=1, index=index, connect=connect)
    next(turns)

    def advance() -> None:
        next(turns)
        next(turns)

    return Arm(advance, turns.close)


def framework_rows(name: str, recipe: Recipe, held: Sequence[Batch], size: int) -> list[Sequence[str]]:
    with tempfile.TemporaryDirectory() as storage:
        arms = {
            "bare": bare(recipe, itertools.cycle(held)),
            "DDP": bare(recipe, itertools.cycle(held), nn.parallel.DistributedDataParallel),
            "product": product(recipe, held, size, Path(storage)),
        }
        return rows(name, arms)


def data_rows(
    name: str, recipe: Recipe, held: Sequence[Batch], feeds: dict[str, Iterator[Batch]]
) -> list[Sequence[str]]:
    arms = {"held in memory": bare(recipe, itertools.cycle(held))}
    return rows(name, arms | {feed: bare(recipe, iterator) for feed, iterator in feeds.items()})


def rows(name: str, arms: dict[str, Arm]) -> list[Sequence[str]]:
    first = next(iter(arms))
    steps = max(1, round(CHUNK_S / arms[first].chunk(3)))
    taken = interleaved({arm: partial(opened.chunk, steps) for arm, opened in arms.items()}, ROUNDS)
    return [[name, *row] for row in beside_first(taken)]


if __name__ == "__main__":
    main()
