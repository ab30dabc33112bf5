"""How long from POST to the first step, and what it is spent on: `python -m tests.benchmarks.startup`.

Through the whole stack, with a service and a Ray head of its own that are warm: from the request to the first completed
step of the slowest replica.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from codistill.run_dir import read_json
from codistill.spec_errors import parse_spec
from tests.benchmarks.report import spread, table
from tests.service.running import Service, until

ROUNDS = 3
PARTS = {
    "service": "POST, commit, admission, Ray Job: until the driver's process begins",
    "driver": "driver: imports, joining the cluster",
    "run": "Ray Train: controller, placement group, worker process",
    "imports": "worker: imports (Ray Train, torch, the recipe's)",
    "model": "worker: data, model, first step",
}


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        service = Service(Path(directory) / "home")
        try:
            service.start()
            measure(service, 1, 1.0)  # the first job of a cluster pays for cold caches
            rows = [row_of(service, replicas, cpus) for replicas, cpus in ((1, 1.0), (2, 1.0), (4, 0.5))]
        finally:
            service.client.close()
            service.down()
    title = "POST to first step of the slowest replica, seconds: median (range), then medians of parts"
    print(table(title, ["replicas", "total", *PARTS], rows))
    for name, meaning in PARTS.items():
        print(f"  {name}: {meaning}")


def row_of(service: Service, replicas: int, cpus: float) -> list[str]:
    runs = [measure(service, replicas, cpus) for _ in range(ROUNDS)]
    parts = [f"{statistics.median(run[part] for run in runs):.1f}" for part in PARTS]
    return [str(replicas), spread([sum(run.values()) for run in runs], ".1f"), *parts]


def measure(service: Service, replicas: int, cpus: float) -> dict[str, float]:
    """Seconds of each part for the slowest replica of one job."""
    method: dict[str, Any] = {"kind": "codistillation"} if replicas > 1 else {"kind": "solo"}
    spec = parse_spec(
        {
            "method": method,
            "replicas": {"count": replicas, "cpus": cpus},
            "training": {"steps": 100_000, "batch_size": 32},
        }
    )
    posted = time.time()
    job_id = service.client.submit(spec).id
    run = service.run_of(job_id)

    def first_steps() -> list[dict[str, Any]]:
        beats = list(run.read_heartbeats(1).values())
        return beats if len(beats) == replicas and all(beat["first_step_at"] for beat in beats) else []

    beats: list[dict[str, Any]] = until("every replica has made a step", first_steps, 120)
    slowest = max(beats, key=lambda beat: beat["first_step_at"])
    marks = [
        posted,
        process_start(service.driver_pid(job_id, 1)),
        read_json(run.attempt(1) / "attempt.json")["started_at"],
        process_start(slowest["pid"]),
        slowest["started_at"],
        slowest["first_step_at"],
    ]
    service.client.cancel(job_id)
    service.wait_end(job_id)
    return {part: later - earlier for part, (earlier, later) in zip(PARTS, pairwise(marks), strict=True)}


def process_start(pid: int) -> float:
    """When a process began, in seconds since the epoch."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    up_s = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - (up_s - ticks / os.sysconf("SC_CLK_TCK"))


if __name__ == "__main__":
    main()
