"""The product beside Ray Train's own loop, both inside one Ray Train worker: `python -m tests.benchmarks.ray_train`.

Ray Train's loop is as its documentation has it: `prepare_model`, a plain loop, `report` now and then (here once for 25
steps). With one worker `prepare_model` wraps nothing, so DistributedDataParallel is set beside it as well.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.benchmarks.cluster import small_cluster
from tests.benchmarks.report import table
from tests.benchmarks.training import HELD, Arm, available, bare, batch_size, batches, product, rows

REPORT_STEPS = 25


def main() -> None:
    with small_cluster(object_store_bytes=10**8) as _, tempfile.TemporaryDirectory() as scratch:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        trainer = TorchTrainer(
            in_the_worker, scaling_config=ScalingConfig(num_workers=1), run_config=RunConfig(storage_path=scratch)
        )
        result: Any = trainer.fit()
        head = ["recipe", "loop", "ms a step: median (range)", "of the bare loop's steps/s"]
        print(table("In a Ray Train worker (aim: product >= Ray Train's own)", head, result.return_value), flush=True)


def in_the_worker() -> list[Sequence[str]]:
    import ray.train
    from ray.train.torch import prepare_model

    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    name, recipe = next(available())
    size = batch_size(recipe)
    held = list(itertools.islice(batches(recipe, size, workers=0), HELD))
    rays = bare(recipe, itertools.cycle(held), prepare_model)
    done = itertools.count(1)

    def advance_and_report() -> None:
        rays.advance()
        if next(done) % REPORT_STEPS == 0:
            ray.train.report({"steps": 1})

    with tempfile.TemporaryDirectory() as storage:
        arms = {
            "bare": bare(recipe, itertools.cycle(held)),
            "Ray Train": Arm(advance_and_report),
            "DDP": bare(recipe, itertools.cycle(held), nn.parallel.DistributedDataParallel),
            "product": product(recipe, held, size, Path(storage)),
        }
        return rows(f"{name}, batch {size}", arms)


if __name__ == "__main__":
    main()
