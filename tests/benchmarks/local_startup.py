"""How long from the command to the first step on this machine alone: `python -m tests.benchmarks.local_startup`.

Without Ray: from the start of `codistill.local` to the first completed step of the slowest replica. The limit is one
process that imports torch and the library, which all replicas are forked from; the peer is as many processes that each
import them, and what torch's optimizers import, before any has read its data.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from codistill.run_dir import RunDir
from codistill.spec import JobSpec
from codistill.spec_errors import parse_spec
from tests.benchmarks.report import interleaved, spread, table

ROUNDS, REPLICAS = 5, (1, 2, 4)
LIBRARY = "import codistill.replica"
AND_OPTIMIZERS = "import codistill.replica, torch._dynamo"


def main() -> None:
    for replicas in REPLICAS:
        taken = interleaved(
            {
                "one process imports": lambda: importing(1, LIBRARY),
                f"processes: {replicas}, each imports": lambda replicas=replicas: importing(replicas, AND_OPTIMIZERS),
                f"replicas: {replicas}, to the first step of the last": lambda replicas=replicas: first_step_s(
                    replicas
                ),
            },
            ROUNDS,
        )
        limit = next(iter(taken.values()))
        rows = [
            [name, spread(values, ".1f"), spread([v / base for v, base in zip(values, limit, strict=True)], ".2f")]
            for name, values in taken.items()
        ]
        print(
            table(
                f"Start on this machine, replicas: {replicas}", ["", "seconds: median (range)", "of one import"], rows
            )
        )


def importing(processes: int, what: str) -> float:
    """Seconds until so many fresh interpreters have imported it."""
    began = time.perf_counter()
    started = [subprocess.Popen([sys.executable, "-P", "-c", what]) for _ in range(processes)]
    for process in started:
        process.wait()
    return time.perf_counter() - began


def first_step_s(replicas: int) -> float:
    """Seconds from the command to the first step of the slowest replica."""
    with tempfile.TemporaryDirectory() as directory:
        spec_file, run = Path(directory) / "spec.json", RunDir(Path(directory), "job")
        spec_file.write_text(endless(replicas).model_dump_json())
        command = [sys.executable, "-P", "-m", "codistill.local", str(spec_file)]
        command += ["--storage", directory, "--job", "job"]
        began = time.time()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while len(steps := first_steps(run)) < replicas:
                assert process.poll() is None, "it ended before its first steps"
                time.sleep(0.02)
            process.terminate()
    return max(steps) - began


def endless(replicas: int) -> JobSpec:
    """The default recipe, until it is stopped."""
    method = {"kind": "codistillation"} if replicas > 1 else {"kind": "solo"}
    training = {"steps": 100_000, "batch_size": 32}
    return parse_spec({"method": method, "replicas": {"count": replicas, "cpus": 0.5}, "training": training})


def first_steps(run: RunDir) -> list[float]:
    """When each replica that has made a step made its first, in seconds since the epoch."""
    beats = run.read_heartbeats(1).values() if run.root.exists() else []
    return [float(beat["first_step_at"]) for beat in beats if beat["first_step_at"]]


if __name__ == "__main__":
    main()
