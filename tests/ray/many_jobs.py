"""Many small jobs on Ray for the price of starting a few workers: each trains its replica of one job after another.

What a driver does is the same for all methods, and takes ten seconds of processor for every replica; what a worker does
is `cluster.worker.train`, and differs.
"""

from __future__ import annotations

import tomllib
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from cluster.directory import start_directory
from cluster.slim_train import prepare_environment
from cluster.trainer import TrainRun
from cluster.worker import train
from codistill.data.home import data_home
from codistill.run_dir import RunDir
from codistill.spec import JobSpec
from codistill.spec_errors import parse_spec
from jobs import examples
from tests.support import merge

NAMESPACE = "many-jobs"
SMALL = {
    "steps": 12,
    "hint_steps": 6,
    "burn_in_steps": 3,
    "interval_steps": 2,
    "ramp_steps": 4,
    "batch_size": 16,
    "log_interval_steps": 4,
    "evaluate_interval_steps": 12,
    "train_size": 200,
    "evaluation_size": 50,
}
"""What examples become, wherever one of these keys stands in them."""


def small_examples() -> dict[str, dict[str, Any]]:
    """Every example of `jobs/examples/methods`, by name, in a few steps and in lockstep; not parsed yet."""
    files = sorted((Path(examples.__file__).parent / "methods").glob("*.toml"))
    lockstep = {"exchange": {"mode": "lockstep", "interval_steps": SMALL["interval_steps"]}}
    return {file.stem: merge(_shrunk(tomllib.loads(file.read_text())), lockstep) for file in files}


def _shrunk(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: SMALL.get(key, _shrunk(inner)) for key, inner in value.items()}
    return [_shrunk(inner) for inner in value] if isinstance(value, list) else value


def changed(example: Mapping[str, Any], **change: Any) -> JobSpec:
    return parse_spec(merge(example, change))


@contextmanager
def on_ray(runs: Sequence[RunDir]) -> Generator[None]:
    """Train the first attempt of all jobs while the body runs; on the way out wait for them, and raise what they raise.

    Jobs of as many ranks share their workers; those that use the object store may be one alone, since they would meet
    in its directory.
    """
    prepare_environment()
    directory = start_directory(NAMESPACE)
    share: dict[tuple[int, int], list[RunDir]] = {}
    for run in runs:
        replicas = run.read_spec().replicas
        for index in range(replicas.count):
            share.setdefault((replicas.ranks, index), []).append(run)
    try:
        with ThreadPoolExecutor(len(share)) as pool:
            fits = [pool.submit(_train_run(its, *place, directory).fit) for place, its in share.items()]
            yield
            for fit in fits:
                fit.result()
    finally:
        ray.kill(directory)


def _train_run(runs: Sequence[RunDir], ranks: int, index: int, directory: Any) -> TrainRun:
    storage = runs[0].storage
    return TrainRun(
        replica=f"{ranks}-ranks-{index}",
        function=train_each,
        config={
            "storage": str(storage),
            "jobs": " ".join(run.job_id for run in runs),
            "fence": 1,
            "index": index,
            "arm": "replica",
            "data_home": str(data_home()),
            "namespace": NAMESPACE,
        },
        ranks=ranks,
        cpus=0.5,
        gpus=0.0,
        memory_bytes=None,
        scratch=storage / "ray",
        directory=directory,
    )


def train_each(config: dict[str, str | int]) -> dict[str, Any]:
    """The worker's train function, for each of `jobs`; their entries of `result.json`."""
    return {job: train({**config, "job": job}) for job in str(config["jobs"]).split()}
