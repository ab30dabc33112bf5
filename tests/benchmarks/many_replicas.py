"""What a replica takes when there are many of them: `python -m tests.benchmarks.many_replicas`.

Jobs of 2 and of 8 replicas on one machine, on Ray, through the object store. With `rotating` a replica hears one
teacher at a time whatever their number; `all`, its peer, hears all of them. Memory is the proportional share (PSS) of
the training processes, so that snapshots mapped by several are counted once, and that of all processes of the cluster;
bytes are what a replica receives in one exchange, in models.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codistill import records
from codistill.run_dir import RunDir
from codistill.spec import JobSpec, replica_name
from codistill.spec_errors import parse_spec
from tests.benchmarks.cluster import small_cluster
from tests.benchmarks.report import table
from tests.datasets import write_images

MODEL = {"kind": "mlp", "width": 1000, "layers": 2}
"""On images of 28 x 28 about 7 MB; 16 images a step keep eight of them on two cores moving."""
INTERVAL_STEPS, EXCHANGES, LOOKS = 40, 8, 10


@dataclass(frozen=True)
class Taken:
    """By one replica, in the mean over all of a job."""

    worker_mb: float
    cluster_mb: float
    models_per_exchange: float


def main() -> None:
    with tempfile.TemporaryDirectory() as storage:
        write_images(Path(storage) / "data")
        os.environ["CODISTILL_DATA"] = str(Path(storage) / "data")
        with small_cluster(object_store_bytes=2 * 10**9):
            tell(Path(storage))


def tell(storage: Path) -> None:
    cases = [(2, "rotating"), (8, "rotating"), (8, "all"), (2, "rotating")]
    taken = [measure(storage, f"job-{at}", count, topology) for at, (count, topology) in enumerate(cases)]
    base = mean_of([taken[0], taken[-1]])
    rows = [row("2, rotating", base, base)]
    rows += [
        row(f"{count}, {topology}", one, base) for (count, topology), one in zip(cases[1:3], taken[1:3], strict=True)
    ]
    head = ["replicas", "PSS of a training process", "of that at 2", "PSS of all, per replica", "of that at 2"]
    head += ["models received per exchange", "of that at 2"]
    print(table("A replica among many (aim: 8, rotating <= 1.05 of 2)", head, rows))


def row(name: str, one: Taken, base: Taken) -> list[str]:
    return [
        name,
        f"{one.worker_mb:.0f} MB",
        f"{one.worker_mb / base.worker_mb:.3f}",
        f"{one.cluster_mb:.0f} MB",
        f"{one.cluster_mb / base.cluster_mb:.3f}",
        f"{one.models_per_exchange:.3f}",
        f"{one.models_per_exchange / base.models_per_exchange:.3f}",
    ]


def mean_of(several: Sequence[Taken]) -> Taken:
    fields = [[one.worker_mb, one.cluster_mb, one.models_per_exchange] for one in several]
    return Taken(*(statistics.mean(values) for values in zip(*fields, strict=True)))


def spec_of(count: int, topology: str) -> JobSpec:
    return parse_spec(
        {
            "recipe": {"kind": "images", "model": MODEL},
            "method": {"kind": "codistillation", "burn_in_steps": INTERVAL_STEPS},
            "exchange": {"topology": {"kind": topology}, "interval_steps": INTERVAL_STEPS, "start_together_s": 120.0},
            "replicas": {"count": count, "cpus": 2 / count},
            "training": {"steps": 10**6, "batch_size": 16, "log_interval_steps": 1},
        }
    )


def measure(storage: Path, name: str, count: int, topology: str) -> Taken:
    from cluster.driver import Attempt

    spec = spec_of(count, topology)
    run = RunDir(storage, name)
    run.create(spec)
    attempt = threading.Thread(target=Attempt(run, 1, say=lambda _: None).execute)
    attempt.start()
    names = [replica_name(index) for index in range(count)]
    try:
        first = wait_for(run, names, INTERVAL_STEPS * 3)
        looks: list[tuple[float, float]] = []
        while len(looks) < LOOKS:
            looks.append(look(first))
            time.sleep(1.0)
        last = wait_for(run, names, max(beat["step"] for beat in first.values()) + INTERVAL_STEPS * EXCHANGES)
    finally:
        run.request_stop(1)
        attempt.join()
    return Taken(
        statistics.median(worker for worker, _ in looks) / 1e6,
        statistics.median(everything for _, everything in looks) / count / 1e6,
        statistics.mean(models_per_exchange(run, name, first[name]["step"], last[name]["step"]) for name in names),
    )


def models_per_exchange(run: RunDir, name: str, after: int, before: int) -> float:
    """By the ledger, over the whole exchanges between two steps."""
    first, last = -(-after // INTERVAL_STEPS), before // INTERVAL_STEPS
    rows = records.read(run, name, "ledger").to_pylist()
    within = [row for row in rows if first <= row["step"] // INTERVAL_STEPS < last]
    return sum(row["bytes_received"] > 0 for row in within) / (last - first)


def wait_for(run: RunDir, names: Sequence[str], step: int) -> dict[str, dict[str, Any]]:
    """Heartbeats, once every replica has done so many steps."""
    while True:
        beats = run.read_heartbeats(1)
        if all(name in beats and beats[name]["step"] >= step for name in names):
            return beats
        time.sleep(0.1)


def look(beats: dict[str, dict[str, Any]]) -> tuple[float, float]:
    """Bytes of PSS: of a training process in the mean, and of all of Ray's processes together."""
    workers = [pss_bytes(beat["pid"]) for beat in beats.values()]
    return statistics.mean(workers), sum(pss_bytes(pid) for pid in ray_processes())


def ray_processes() -> list[int]:
    found: list[int] = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if words.startswith("ray::") or "/ray/core/src/ray/raylet/raylet" in words:
            found.append(int(place.name))
    return found


def pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # ended meanwhile
        return 0
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
