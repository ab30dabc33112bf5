"""How long until the first step, and what it is spent on: `python -m tests.benchmarks.startup`.

From the start of the driver process on a running cluster to the first completed step of the slowest replica. (A service
adds the time from POST to the driver: one commit, one Ray Job submission.)
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from codistill.run_dir import RunDir, read_json
from codistill.spec_errors import parse_spec
from tests.benchmarks.cluster import small_cluster
from tests.benchmarks.report import spread, table

ROUNDS = 3
PARTS = {
    "driver": "driver process: imports, joining the cluster",
    "run": "Ray Train: controller, placement group, worker process",
    "imports": "worker: imports (Ray Train, torch, the recipe's)",
    "model": "worker: data, model, first step",
}


def main() -> None:
    with small_cluster() as address:
        measure(address, 1, 1.0)  # the first run of a cluster pays for cold caches
        rows: list[list[str]] = []
        for replicas, cpus in ((1, 1.0), (2, 1.0), (4, 0.5)):
            runs = [measure(address, replicas, cpus) for _ in range(ROUNDS)]
            totals = [sum(run.values()) for run in runs]
            rows.append([str(replicas), spread(totals, ".1f")])
            rows[-1] += [f"{statistics.median(run[part] for run in runs):.1f}" for part in PARTS]
        title = (
            "Start of the driver to first step of the slowest replica, seconds: median (range), then medians of parts"
        )
        print(table(title, ["replicas", "total", *PARTS], rows))
        for name, meaning in PARTS.items():
            print(f"  {name}: {meaning}")


def measure(address: str, replicas: int, cpus: float) -> dict[str, float]:
    """Seconds of each part for the slowest replica of one run."""
    with tempfile.TemporaryDirectory() as storage:
        run = RunDir(Path(storage), "job")
        method: dict[str, Any] = {"kind": "codistillation"} if replicas > 1 else {"kind": "solo"}
        run.create(
            parse_spec(
                {
                    "method": method,
                    "replicas": {"count": replicas, "cpus": cpus},
                    "training": {"steps": 100_000, "batch_size": 32},
                }
            )
        )
        command = [sys.executable, "-P", "-m", "cluster.launch", "--storage", storage, "--job", "job", "--fence", "1"]
        started = time.time()
        driver = subprocess.Popen([*command, "--address", address], stdout=subprocess.DEVNULL)
        try:
            beats = first_steps(run, replicas, driver)
        finally:
            run.request_stop(1)
            driver.wait()
        slowest = max(beats.values(), key=lambda beat: beat["first_step_at"])
        attempt_at = read_json(run.attempt(1) / "attempt.json")["started_at"]
        marks = [started, attempt_at, slowest["process_at"], slowest["started_at"], slowest["first_step_at"]]
        return {part: later - earlier for part, earlier, later in zip(PARTS, marks, marks[1:], strict=False)}


def first_steps(run: RunDir, replicas: int, driver: subprocess.Popen[bytes]) -> dict[str, dict[str, Any]]:
    """The heartbeats once each replica has made a step, with when its process began."""
    while driver.poll() is None:
        beats = run.read_heartbeats(1)
        if len(beats) == replicas and all(beat["first_step_at"] for beat in beats.values()):
            return {name: {**beat, "process_at": process_start(beat["pid"])} for name, beat in beats.items()}
        time.sleep(0.05)
    raise RuntimeError(f"the driver ended before the first step: {read_json(run.result(1))}")


def process_start(pid: int) -> float:
    """When a process began, in seconds since the epoch."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    return int(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
