"""Trainings in processes of their own: contenders, of which one at a time has the first core, and peers, which have the
second one all the time.

What a contender does in helper threads counts as well: they share its core, and stand still with it.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from codistill.batch import Batch
from codistill.exchange.transport import FilesTransport, connect_files
from codistill.peers import PeerTeachers
from codistill.recipes import Recipe
from codistill.run_dir import RunDir
from codistill.spec_errors import parse_spec
from tests.benchmarks.report import interleaved
from tests.benchmarks.training import HELD, MANY_STEPS, Arm, available, batch_size, batches, replica

SPAWN = multiprocessing.get_context("spawn")
INTERVAL_STEPS = 50
IN_ALL_S, MIN_ROUNDS = 90.0, 8
OpenArm = Callable[[], Arm]


CORES = sorted(os.sched_getaffinity(0))
"""Those that the benchmark was given, before it settles on one."""


def two_cores() -> tuple[int, int]:
    """One for what is measured, one for its peer; the same one twice where there is no other."""
    return CORES[0], CORES[-1]


# ---------------------------------------------------------------- processes


class Contender:
    """A process that trains as many steps as it is told, and is stopped in between."""

    def __init__(self, open_arm: OpenArm, core: int) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_train_when_told, args=(theirs, open_arm, core), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()
        self._signal(signal.SIGSTOP)

    def chunk(self, steps: int) -> float:
        """Seconds per step of the next few."""
        self._signal(signal.SIGCONT)
        self._pipe.send(steps)
        taken: float = self._pipe.recv()
        self._signal(signal.SIGSTOP)
        return taken

    def close(self) -> None:
        self._process.kill()
        self._process.join()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)


def _train_when_told(pipe: Connection, open_arm: OpenArm, core: int) -> None:
    _settle(core)
    arm = open_arm()
    pipe.send("ready")
    while True:
        pipe.send(arm.chunk(pipe.recv()))


@contextmanager
def working(work: Callable[[], Any], core: int) -> Generator[BaseProcess]:
    """`work` in a process on this core, until the block is left."""
    process = SPAWN.Process(target=_work, args=(work, core), daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _work(work: Callable[[], Any], core: int) -> None:
    _settle(core)
    work()


def _settle(core: int) -> None:
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)


def interleaved_for(chunks: Mapping[str, Callable[[], float]], steps: int) -> dict[str, list[float]]:
    """Rounds that take `IN_ALL_S` together, and seven at least."""
    round_s = sum(chunk() * steps for chunk in chunks.values())
    return interleaved(chunks, max(MIN_ROUNDS, round(IN_ALL_S / round_s)))


# ---------------------------------------------------------------- replicas


def recipe_of(name: str) -> Recipe:
    return dict(available())[name]


def first_recipe() -> tuple[str, int]:
    """The first one whose data are here, and the batch with which a step takes long enough."""
    os.sched_setaffinity(0, {two_cores()[0]})
    torch.set_num_threads(1)
    name, recipe = next(available())
    return name, batch_size(recipe)


def held_batches(recipe: Recipe, size: int) -> list[Batch]:
    return list(itertools.islice(batches(recipe, size, workers=0), HELD))


def new_job(storage: Path, job: str, size: int, **change: Any) -> RunDir:
    """A job of endless replicas, in which nothing but training and the exchange takes place."""
    training = {
        "steps": MANY_STEPS, "batch_size": size,
        "evaluate_interval_steps": MANY_STEPS, "checkpoint_interval_steps": MANY_STEPS,
    }  # fmt: skip
    run = RunDir(storage, job)
    run.create(parse_spec({"recipe": {"kind": "installed", "name": "benchmark"}, "training": training, **change}))
    run.start_attempt(1, 0.0)
    return run


def open_replica(run: RunDir, index: int, recipe_name: str, size: int) -> Arm:
    """A replica of the product."""
    recipe = recipe_of(recipe_name)
    return replica(run, index, recipe, held_batches(recipe, size), connect_files)


EXCHANGE: tuple[tuple[Any, str], ...] = (
    (PeerTeachers, "before_step"),
    (PeerTeachers, "after_step"),
    (FilesTransport, "poll"),
)
"""All that is called of it: by the training thread, and by the helper of its own accord."""
ASKING: tuple[tuple[Any, str], ...] = ((PeerTeachers, "outputs"),)


def without(calls: Sequence[tuple[Any, str]], chunk: Callable[[], float]) -> Callable[[], float]:
    """`chunk` while these calls of this process do nothing and find nobody."""

    def still() -> float:
        present = [getattr(owner, name) for owner, name in calls]
        for owner, name in calls:
            setattr(owner, name, lambda *_: {})
        try:
            return chunk()
        finally:
            for (owner, name), call in zip(calls, present, strict=True):
                setattr(owner, name, call)

    return still


def train_for_ever(run: RunDir, index: int, recipe_name: str, size: int) -> None:
    arm = open_replica(run, index, recipe_name, size)
    while True:
        arm.advance()


PAIR: dict[str, Any] = {
    "method": {"kind": "codistillation", "burn_in_steps": 0},
    "replicas": {"count": 2},
    "exchange": {"interval_steps": INTERVAL_STEPS},
}
