"""What several tests need: small specs, runs of all replicas in one process, and the state they end in."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from codistill.exchange.transport import Connect, Hub, MemoryTransport
from codistill.replica import replica_turns
from codistill.run_dir import RunDir
from codistill.spec import JobSpec
from codistill.spec_errors import parse_spec

SMALL = {
    "recipe": {"kind": "digits", "width": 4, "train_size": 200},
    "training": {"steps": 12, "batch_size": 16, "checkpoint_interval_steps": 5, "log_interval_steps": 1},
    "exchange": {"mode": "lockstep", "interval_steps": 2},
    "method": {"kind": "codistillation", "burn_in_steps": 3},
}


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `change` put over it, level by level; another `kind` replaces the whole table."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        keep = isinstance(value, Mapping) and isinstance(old, Mapping)
        if keep and "kind" in value and value["kind"] != old.get("kind"):
            keep = False
        merged[key] = merge(old, value) if keep else value
    return merged


def small_spec(**change: Any) -> JobSpec:
    """A pair on 200 digits for 12 steps in lockstep, changed as told."""
    return parse_spec(merge(SMALL, change))


def new_run(storage: Path, spec: JobSpec, name: str = "job") -> RunDir:
    """A run directory with the first attempt begun."""
    storage.mkdir(parents=True, exist_ok=True)
    run = RunDir(storage, name)
    run.create(spec)
    run.start_attempt(1, time.time())
    return run


def run_in_turns(
    run: RunDir,
    *,
    fence: int = 1,
    hub: Hub | None = None,
    connect: Connect | None = None,
    before_step: Callable[[int, int], None] = lambda replica, step: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[int, dict[str, Any]]:
    """All replicas in this process, tick by tick, through memory unless `connect` says otherwise;
    `before_step(replica, step)` may look or fail."""
    shared, spec = hub or Hub(), run.read_spec()
    turns = {
        index: replica_turns(
            run,
            fence=fence,
            index=index,
            connect=connect or (lambda scope: MemoryTransport(shared, scope.index, keep=scope.keep)),
            before_step=lambda step, index=index: before_step(index, step),
            should_stop=should_stop,
        )
        for index in range(spec.replicas.count)
    }
    results: dict[int, dict[str, Any]] = {}
    while len(results) < len(turns):
        for index, turn in turns.items():
            if index not in results:
                try:
                    next(turn)
                except StopIteration as end:
                    results[index] = end.value
    return results


def final_weights(run: RunDir, replica: int) -> dict[str, torch.Tensor]:
    return load_file(run.export(f"replica-{replica}") / "model.safetensors")


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """Equal exactly when all bytes are."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
