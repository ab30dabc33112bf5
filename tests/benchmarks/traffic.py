"""What travels, against the formulas: `python -m tests.benchmarks.traffic`.

Bytes that one of n replicas receives in one step, P bytes of weights and buffers, G of gradients, k steps between
exchanges, T teachers:

    co-distillation T P / k        averaging, all with all (n - 1) P / k        data parallel 2 (n - 1) / n G

An all-reduce would average with 2 (n - 1) / n P / k, as torchft's and OpenDiLoCo's does; here every replica hears every
other, and whoever dies breaks no collective. For two replicas that is the same, for eight four times as much.
What a network interface carries is measured too, for data parallel training over gloo, in a network namespace of its
own, where the machine has those.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codistill.baselines import baseline_of
from codistill.describe import describe
from codistill.local import run_in_turns
from codistill.run_dir import RunDir, read_json
from codistill.spec import JobSpec
from codistill.spec_errors import parse_spec
from codistill.topology import teachers_of
from tests.benchmarks.report import table

STEPS, INTERVAL_STEPS = 40, 10
EXCHANGES = STEPS // INTERVAL_STEPS


def main() -> None:
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder)
        for replicas in (2, 4, 8):
            rows += rows_of(storage, replicas)
    head = ["replicas", "method", "bytes a step: counted", "formula", "counted / formula", "of ddp", "of diloco"]
    title = f"Received by each replica, an exchange in {INTERVAL_STEPS} steps (aim: <= 1.01 of the formula)"
    print(table(title, head, rows), flush=True)
    print(interface(), flush=True)


def pair_of(replicas: int, topology: str) -> JobSpec:
    """Digits and a small net: bytes are as good as those of a large one."""
    return parse_spec(
        {
            "name": topology,
            "recipe": {"kind": "digits", "train_size": 400},
            "method": {"kind": "codistillation", "burn_in_steps": 0},
            "training": {"steps": STEPS, "batch_size": 8, "checkpoint_interval_steps": STEPS},
            "replicas": {"count": replicas},
            "exchange": {
                "mode": "lockstep", "interval_steps": INTERVAL_STEPS, "topology": {"kind": topology},
            },
        }
    )  # fmt: skip


def rows_of(storage: Path, replicas: int) -> list[list[str]]:
    base = pair_of(replicas, "rotating")
    facts = describe(base)
    weights, gradients = facts["bytes_per_snapshot"], 4 * facts["parameters"]
    counted: dict[str, tuple[float, float]] = {}
    for topology in ("rotating", "all"):
        spec = pair_of(replicas, topology)
        teachers = len(teachers_of(spec.exchange.topology, 0, replicas))
        counted[f"co-distillation, {topology}"] = (
            received(storage, spec) / replicas,
            teachers * weights / INTERVAL_STEPS,
        )
    counted["diloco"] = (
        received(storage, baseline_of(base, "diloco")) / replicas,
        (replicas - 1) * weights / INTERVAL_STEPS,
    )
    if replicas <= 4:  # a process for each rank
        formula = 2 * (replicas - 1) / replicas * gradients
        counted["ddp"] = (received(storage, baseline_of(base, "ddp")) / replicas, formula)
    ddp, diloco = (counted.get(name, (float("nan"),))[0] for name in ("ddp", "diloco"))
    return [
        [str(replicas), name, f"{found:,.0f}", f"{formula:,.0f}", f"{found / formula:.4f}", *beside(found, ddp, diloco)]
        for name, (found, formula) in counted.items()
    ]


def beside(found: float, *others: float) -> list[str]:
    return ["" if other != other else f"{found / other:.3f}" for other in others]


def received(storage: Path, spec: JobSpec) -> float:
    """Bytes a step, over all replicas of the job."""
    run = RunDir(storage, f"{spec.name}-{spec.replicas.count * spec.replicas.ranks}")
    run.create(spec)
    results: Mapping[str, Any]
    if spec.replicas.ranks == 1:
        run.start_attempt(1, 0.0)
        results = run_in_turns(run, 1)
    else:
        run_job_quietly(run)
        results = (read_json(run.result(1)) or {})["replicas"]
    return sum(entry["bytes_received"] for entry in results.values()) / STEPS


def run_job_quietly(run: RunDir) -> None:
    words = [sys.executable, "-P", "-m", "codistill.local", "--storage", str(run.storage), "--job", run.job_id]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


# ---------------------------------------------------------------- what the interface says


def interface() -> str:
    """Of a long and a short run of two ranks the difference, so that meeting and starting do not count."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return "What the interface carries is not measured: it takes unshare and ip"
    script = f"ip link set lo up && exec {sys.executable} -m tests.benchmarks.traffic interface"
    done = subprocess.run(["unshare", "--net", "--map-root-user", "sh", "-c", script], capture_output=True, text=True)
    if done.returncode:
        return f"What the interface carries is not measured: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
    found = json.loads(done.stdout.splitlines()[-1])
    return (
        f"ddp of 2 ranks, per step: counted {found['counted']:,.0f}, on the loopback interface {found['carried']:,.0f},"
        f" with headers, acknowledgements and what ranks agree on ({found['carried'] / found['counted']:.3f})"
    )


def inside() -> None:
    """Within the namespace: nobody else is there."""
    carried: dict[int, int] = {}
    counted: dict[int, int] = {}
    wide = {"kind": "digits", "width": 64, "train_size": 400}
    with tempfile.TemporaryDirectory() as folder:
        for steps in (STEPS, 3 * STEPS):
            values = baseline_of(pair_of(2, "all"), "ddp").model_dump(mode="json") | {"recipe": wide}
            values["training"] |= {"steps": steps, "checkpoint_interval_steps": steps}
            run = RunDir(Path(folder), f"ddp-{steps}")
            run.create(parse_spec(values))
            before = loopback_bytes()
            run_job_quietly(run)
            carried[steps] = loopback_bytes() - before
            counted[steps] = (read_json(run.result(1)) or {})["replicas"]["replica-0"]["bytes_received"]
    per_step = {
        name: (found[3 * STEPS] - found[STEPS]) / (2 * STEPS)
        for name, found in (("counted", counted), ("carried", carried))
    }
    print(json.dumps(per_step))


def loopback_bytes() -> int:
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith("lo:"))


if __name__ == "__main__":
    if sys.argv[1:] == ["interface"]:
        inside()
    else:
        main()
