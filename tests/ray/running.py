"""Jobs for tests on Ray: a spec that trains for a few seconds, and an attempt that runs beside the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util import placement_group_table

from cluster.driver import Attempt
from codistill import records
from codistill.run_dir import RunDir
from codistill.spec import JobSpec
from codistill.spec_errors import parse_spec

INTERVAL_STEPS = 10


def spec_of(steps: int, *, replicas: Mapping[str, Any] | None = None, **more: Any) -> JobSpec:
    """Two replicas that teach each other from step 20 on; a step takes some milliseconds."""
    return parse_spec(
        {
            "training": {
                "steps": steps,
                "batch_size": 32,
                "log_interval_steps": 5,
                "checkpoint_interval_steps": 50,
                "evaluate_interval_steps": steps,
            },
            "method": {"kind": "codistillation", "burn_in_steps": 20},
            "exchange": {"interval_steps": INTERVAL_STEPS},
            "replicas": {"count": 2, **(replicas or {})},
            **more,
        }
    )


def create(storage: Path, spec: JobSpec, job: str = "job") -> RunDir:
    run = RunDir(storage, job)
    run.create(spec)
    return run


@contextmanager
def beside(run: RunDir, **settings: Any) -> Generator[Callable[[], dict[str, Any]]]:
    """Execute attempt 1 in a thread; yields what waits for its end and answers the content of `result.json`."""
    results: list[dict[str, Any]] = []
    attempt = Attempt(run, 1, say=lambda _: None, **settings)
    thread = threading.Thread(target=lambda: results.append(attempt.execute()))
    thread.start()

    def ended() -> dict[str, Any]:
        thread.join(timeout=300)
        assert results, "the attempt has not ended"
        return results[0]

    try:
        yield ended
    finally:
        if thread.is_alive():
            run.request_stop(1)
            thread.join(timeout=40)


def until(condition: Callable[[], Any], limit_s: float = 180.0) -> Any:
    """Wait for `condition` to be true, and answer what it said."""
    deadline = time.monotonic() + limit_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return answer


def beat(run: RunDir, replica: str, fence: int = 1) -> dict[str, Any]:
    return run.read_heartbeats(fence).get(replica, {"step": -1, "incarnation": -1, "pid": -1, "teachers": []})


def ledger(run: RunDir, replica: str) -> list[dict[str, Any]]:
    return records.read(run, replica, "ledger").to_pylist()


def nothing_reserved() -> bool:
    """Whether the shared cluster is as free as it was at the start."""
    groups = placement_group_table().values()
    return all(group["state"] == "REMOVED" for group in groups) and ray.available_resources().get("CPU") == 2.0
