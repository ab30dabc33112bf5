"""What a job will take, told before it is trained and set beside what it took. Pure; imports no torch.

Sizes follow from the spec (`codistill.describe`); seconds are those of earlier jobs like it, or unknown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from codistill.exchange.clock import PublishRule
from codistill.spec import JobSpec

_SAME_STEP = {
    "recipe": True,
    "recipes": True,
    "method": {
        "kind", "teacher", "cache_predictions", "scheme", "stage", "teacher_stage",
        "nets", "others", "branches", "split", "order",
    },
    "replicas": True,
    "exchange": {"topology", "interval_steps", "currency", "mode", "transport"},
    "training": {"batch_size", "accumulate", "optimizer", "precision", "compile", "device", "loader"},
}  # fmt: skip
"""Of a spec what decides how long a step takes."""
_SAME_SIZE = {"name", "labels", "priority", "seed", "limits"}
"""Of a spec what decides nothing about sizes."""
PROCESS_BYTES = 512 << 20
"""What the process of a rank takes beside its tensors: Python, torch, Ray's worker, what kernels work in, batches."""
_SAVED = ("weights", "optimizer", "average", "outer")
"""Of its tensors what a checkpoint holds, which is copied before it is written."""


def likeness(spec: JobSpec) -> str:
    """The same for specs whose steps take equally long on the same machine."""
    return _digest(spec.model_dump(mode="json", include=_SAME_STEP))


def size_key(spec: JobSpec) -> str:
    """The same for specs of which `codistill.describe` says the same."""
    return _digest(spec.model_dump(mode="json", exclude=_SAME_SIZE))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class PastRun:
    """How fast a job was that trained to its end."""

    hardware: str
    """What it trained on, e.g. the name of a GPU."""
    step_s: float
    """Seconds per step, evaluations and checkpoints included: the median of its replicas."""
    other_s: float
    """Seconds in which none of its replicas trained: starting, importing, finishing."""
    process_bytes: int | None = None
    """The most that a process of it was in memory with, framework and data included."""


@dataclass(frozen=True)
class Spread:
    """Of some runs: the least, the one in the middle, the most."""

    low: float
    median: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(*(round(value, 6) for value in (min(values), median(values), max(values))))


def past_run(result: Mapping[str, Any] | None) -> PastRun | None:
    """What a `result.json` tells of speed; None when the attempt was not a whole training without a restart."""
    took = result and result.get("took")
    if not result or not took or took["step_s"] is None or result["outcome"] != "succeeded" or result["fence"] != 1:
        return None
    replicas: Iterable[Mapping[str, Any]] = result["replicas"].values()
    if any(replica["incarnations"] != 1 for replica in replicas):
        return None
    trained_s: dict[str, float] = {}
    for name, replica in result["replicas"].items():
        arm = name.rpartition("-")[0]
        trained_s[arm] = max(trained_s.get(arm, 0.0), replica["steps"] * (replica["step_s"] or 0.0))
    return PastRun(
        took["hardware"],
        took["step_s"],
        max(0.0, took["seconds"] - sum(trained_s.values())),
        took["process_bytes_per_rank"],
    )


def estimate(
    spec: JobSpec, facts: Mapping[str, Any] | str, past: Sequence[PastRun], *, steps_done: int = 0
) -> dict[str, Any]:
    """The price of a job.

    `facts` is what `codistill.describe` says, or why it says nothing; `past` are runs of the same likeness, and
    `steps_done` what a job that goes on from another finds trained. What is not known is null, and named in `unknown`.
    """
    known: Mapping[str, Any] = {} if isinstance(facts, str) else facts
    steps = max(0, spec.total_steps - steps_done)
    received, exchanges = known.get("bytes_received_per_exchange"), exchanges_of(spec, steps_done)
    every = facts_of_each(spec, known)
    snapshots = exchanges * sum(one.get("bytes_received_per_exchange", 0) for one in every)
    gradients = steps * sum(one.get("gradient_bytes_per_step", 0) for one in every)
    memory: Mapping[str, int] = known.get("memory_bytes_per_rank", {})
    unknown = [f"sizes: {facts}"] if isinstance(facts, str) else []
    if spec.on_cuda:
        unknown.append("whether its tensors fit: nodes do not tell how much memory their GPUs have")
    if not past:
        unknown.append("seconds: no job like this one has trained to its end here")
    return {
        "parameters": known.get("parameters"),
        "memory_bytes_per_rank": memory.get("total"),
        "node_bytes_per_rank": node_bytes(spec, memory),
        "steps": steps,
        "exchanges": exchanges,
        "bytes_per_exchange": received,
        "bytes_received": None if received is None else snapshots + gradients,
        "controls_steps": len(spec.controls) * spec.training.steps,
        "speeds": [_speed(spec, steps, known, on, runs) for on, runs in _by_hardware(past).items()],
        "unknown": unknown,
    }


def node_bytes(spec: JobSpec, memory: Mapping[str, int]) -> int | None:
    """Of its node's memory what the process of a rank takes at most, of the sizes of its tensors (those of
    `codistill.describe`); None where they are not known. What lies on a GPU is in the node's memory when it is saved or
    sent."""
    if "total" not in memory:
        return None
    held = memory.get("outgoing", 0) if spec.on_cuda else memory["total"]
    return PROCESS_BYTES + held + sum(memory.get(part, 0) for part in _SAVED)


def facts_of_each(spec: JobSpec, facts: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Of each replica of the job, what `codistill.describe` says."""
    return facts.get("replicas") or [facts] * spec.replicas.count


def exchanges_of(spec: JobSpec, steps_done: int = 0) -> int:
    """How often each replica publishes, once `steps_done` steps are trained."""
    if not spec.exchanges:
        return 0
    interval, steps = spec.exchange.interval_steps, spec.training.steps
    if spec.averages:
        return -(-steps // interval) - steps_done // interval  # the last step is one, whatever the interval
    rule = PublishRule(spec.burn_in_steps, interval)
    published = [rule.exchange(step - 1) + 1 if step > spec.burn_in_steps else 0 for step in (steps, steps_done)]
    return max(0, published[0] - published[1])


def _by_hardware(past: Sequence[PastRun]) -> dict[str, list[PastRun]]:
    found: dict[str, list[PastRun]] = {}
    for run in past:
        found.setdefault(run.hardware, []).append(run)
    return found


def _speed(
    spec: JobSpec, steps: int, facts: Mapping[str, Any], hardware: str, runs: Sequence[PastRun]
) -> dict[str, Any]:
    per_control = spec.training.steps * share_without_teachers(spec, facts)
    controls_s = [len(spec.controls) * per_control * run.step_s for run in runs]
    whole_s = [run.other_s + steps * run.step_s + more for run, more in zip(runs, controls_s, strict=True)]
    return {
        "hardware": hardware,
        "runs": len(runs),
        "step_s": asdict(Spread.of([run.step_s for run in runs])),
        "process_bytes_per_rank": _most(run.process_bytes for run in runs),
        "seconds": asdict(Spread.of(whole_s)),
        "controls_seconds": asdict(Spread.of(controls_s)),
    }


def share_without_teachers(spec: JobSpec, facts: Mapping[str, Any]) -> float:
    """What part of a step's work, that of all replicas, is left without teachers, by floating-point operations; 1 where
    nothing is known."""
    phases = [one.get("phases", {}).get("train", {}) for one in facts_of_each(spec, facts)]
    own = sum(phase.get("flops_per_step", 0.0) for phase in phases)
    teachers = sum(phase.get("teachers_flops_per_step", 0.0) for phase in phases)
    return own / (own + teachers) if own else 1.0


def taken(replicas: Mapping[str, Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    """What an attempt took, by the same names as in its estimate. Speed, memory and bytes are those of the job's own
    replicas; null where none of them came to its end."""
    own = [replica for name, replica in replicas.items() if name.startswith("replica-")]
    step_s = [replica["step_s"] for replica in own if replica["step_s"] is not None]
    return {
        "seconds": round(seconds, 3),
        "step_s": round(median(step_s), 6) if step_s else None,
        "hardware": next((replica["hardware"] for replica in own if replica["hardware"]), None),
        "memory_bytes_per_rank": _most(replica["memory_bytes"] for replica in own),
        "process_bytes_per_rank": _most(replica["process_bytes"] for replica in own),
        "bytes_received": sum(replica["bytes_received"] for replica in own),
    }


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
