"""Every method once for real: `make methods`, or `python -m tests.benchmarks.methods [NAME ...]`.

Each example of `jobs/examples/methods` is trained on its real data by the local runner, one thread a replica, beside
plain training of the same recipe; what the method promises is looked at in what it recorded. Nothing here is evidence:
one seed, and minutes. `jobs/method_costs.json` and `docs/methods.md` are written anew when all are run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from codistill.compare import read_predictions
from codistill.compare.metrics import accuracy, flips, log_loss
from codistill.describe import describe
from codistill.records import read, values
from codistill.run_dir import RunDir, read_json
from codistill.spec import JobSpec, Solo
from codistill.spec_files import load_spec
from jobs import examples, method_page
from tests.benchmarks.report import machine, table

EXAMPLES = Path(examples.__file__).parent / "methods"
COSTS = Path(method_page.__file__).parent / "method_costs.json"
PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
MARGIN = 0.02
"""That one run may be off by chance, in accuracy."""
CHANCE = 0.05
"""The same in log loss, as a share of it."""
GAIN = 0.03
"""Of a small network beside a large one, in nats."""


@dataclass(frozen=True)
class Ran:
    """A job that has ended."""

    run: RunDir
    spec: JobSpec

    @cached_property
    def result(self) -> dict[str, Any]:
        return read_json(self.run.result(1)) or {}

    def last(self, name: str) -> float:
        """The last value of a metric of the first replica."""
        return self.curve(name)[-1]

    def curve(self, name: str) -> list[float]:
        _, found = values(read(self.run, "replica-0", "metrics"), name)
        return found

    def test(self, replica: str = "replica-0") -> Any:
        return read_predictions(self.run, 1, replica, "test")

    @property
    def step_s(self) -> float:
        """Of the last phase."""
        steps, taken = values(read(self.run, "replica-0", "metrics"), "time/step_s")
        before = self.spec.total_steps - self.spec.training.steps
        return statistics.median(s for step, s in zip(steps, taken, strict=True) if step > before)


Check = Callable[[Ran, Ran], bool]
"""Whether a method does what it promises, given its run and plain training of the same recipe."""


def as_good(ran: Ran, solo: Ran) -> bool:
    return accuracy(ran.test()) >= accuracy(solo.test()) - MARGIN


def ensemble_is_better(*names: str, ensemble: str) -> Check:
    """The taught teacher has no higher log loss on validation than its networks have in the mean, but for chance."""

    def check(ran: Ran, solo: Ran) -> bool:
        networks = statistics.mean(ran.last(f"eval/{name}log_loss") for name in names)
        return ran.last(f"eval/{ensemble}log_loss") <= (1 + CHANCE) * networks and as_good(ran, solo)

    return check


def learns_from_a_better_one(ran: Ran, solo: Ran) -> bool:
    return log_loss(ran.test()) < log_loss(solo.test())


def helped_by_a_larger_one(ran: Ran, solo: Ran) -> bool:
    return log_loss(ran.test()) <= log_loss(solo.test()) - GAIN and as_good(ran, solo)


def agree_more(ran: Ran, solo: Ran) -> bool:
    """Two replicas that teach each other differ less than two that do not."""
    pair = [flips(one.test("replica-0"), one.test("replica-1")) for one in (ran, solo)]
    return pair[0] < pair[1]


def critics_cannot_tell(ran: Ran, solo: Ran) -> bool:
    return 0.3 <= ran.last("train/critic_loss") <= 0.7 and as_good(ran, solo)


def deeper_exits_are_better(ran: Ran, solo: Ran) -> bool:
    return ran.last("eval/log_loss") <= ran.last("eval/exit0/log_loss") and as_good(ran, solo)


def peers_stay_diverse(ran: Ran, solo: Ran) -> bool:
    return ran.last("train/diversity") > 0 and as_good(ran, solo)


def chooses_among_peers(ran: Ran, solo: Ran) -> bool:
    """Of two it hears neither one alone nor both alike."""
    return 1.01 < ran.last("distill/num_attended") < 1.99 and as_good(ran, solo)


def hints_are_followed(ran: Ran, solo: Ran) -> bool:
    hint = ran.curve("train/hint_loss")
    return hint[-1] < 0.7 * hint[0] and as_good(ran, solo)


CHECKS: Mapping[str, tuple[str, Check]] = {
    "afd": ("critics cannot tell networks apart (loss near 1/2)", critics_cannot_tell),
    "be-your-own-teacher": ("the last exit is better than the first", deeper_exits_are_better),
    "cheap-convolutions": (
        "the teacher is no worse than its students",
        ensemble_is_better("", "net1/", ensemble="teacher/"),
    ),
    "codistillation-attention": ("chooses among its peers, no worse than alone", chooses_among_peers),
    "codistillation-critics": ("critics cannot tell replicas apart (loss near 1/2)", critics_cannot_tell),
    "deep-mutual-learning": ("no worse than alone", as_good),
    "feature-fusion-learning": (
        "the fused classifier is no worse than its networks",
        ensemble_is_better("", "net1/", ensemble="fused/"),
    ),
    "hints": ("the hint is followed, and the student no worse than alone", hints_are_followed),
    "kdcl": (f"the small network has less log loss than alone, by {GAIN} nats", helped_by_a_larger_one),
    "knowledge-distillation": ("the student is better than alone", learns_from_a_better_one),
    "okddip": ("peers stay diverse, the leader no worse than alone", peers_stay_diverse),
    "one-way": ("the small network is better than alone", learns_from_a_better_one),
    "one": (
        "the gated ensemble is no worse than its branches",
        ensemble_is_better("", "branch1/", "branch2/", ensemble="ensemble/"),
    ),
}


def main() -> int:
    names = sys.argv[1:] or sorted(path.stem for path in EXAMPLES.glob("*.toml"))
    print(machine(), flush=True)
    rows: list[list[str]] = []
    costs: dict[str, dict[str, float]] = {}
    kept = True
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            spec = load_spec(EXAMPLES / f"{name}.toml")
            alone = spec.model_copy(update={"method": Solo(), "name": f"{name}-solo"})
            ran, solo = trained(Path(folder), spec), trained(Path(folder), alone)
            predicted, measured = operations(spec) / operations(alone), ran.step_s / solo.step_s
            promise, check = CHECKS.get(name, ("no worse than alone", as_good))
            held = check(ran, solo)
            kept &= held
            if name == spec.method.kind.replace("_", "-"):  # an example of the method itself
                costs[spec.method.kind] = {"predicted": round(predicted, 2), "measured": round(measured, 2)}
            both = [f"{accuracy(one.test()):.3f}, {log_loss(one.test()):.3f}" for one in (ran, solo)]
            took = ran.result["took"]["seconds"]
            rows.append([name, f"{took:.0f} s", *both, f"{predicted:.2f}", f"{measured:.2f}", promise, str(held)])
            print(table(name, HEAD, rows[-1:]), flush=True)
    print(table("Methods", HEAD, rows))
    if not sys.argv[1:]:
        written = {"machine": machine().splitlines()[0].partition(", load")[0], "methods": costs}
        COSTS.write_text(json.dumps(written, indent=2) + "\n")
        method_page.costs.cache_clear()
        PAGE.write_text(method_page.page())
    return 0 if kept else 1


HEAD = ["method", "took", "accuracy, log loss", "alone", "predicted", "measured", "promise", "kept"]


def trained(storage: Path, spec: JobSpec) -> Ran:
    """The job, trained in processes of its own."""
    file = storage / f"{spec.name}.json"
    file.write_text(spec.model_dump_json())
    words = ["-m", "codistill.local", str(file), "--storage", str(storage), "--job", spec.name]
    threads = {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", *words], capture_output=True, text=True, env={**os.environ, **threads}, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{spec.name} ended with {done.returncode}: {done.stderr[-2000:]}{done.stdout[-2000:]}")
    return Ran(RunDir(storage, spec.name), spec)


def operations(spec: JobSpec) -> float:
    """Of a step of the last phase, with teachers."""
    phase = describe(spec)["phases"]["train"]
    return float(phase["flops_per_step"] + phase["teachers_flops_per_step"])


if __name__ == "__main__":
    sys.exit(main())
