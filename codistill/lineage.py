"""What a job that goes on from another may change: a pure table. Imports no torch.

Two ways to go on from a job that has ended, both as a new job from its newest checkpoints. *Resume* is the same
training, so only what leaves its mathematics alone may change, and `training.steps`, upwards. *Fork* is another
training that begins there; what may change is all that the state in a checkpoint still fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from codistill.spec import Codistillation, JobSpec
from codistill.spec_errors import Problem, SpecError, parse_spec

Way = Literal["resume", "fork"]

RESUME = (
    "name",
    "labels",
    "priority",
    "limits",
    "replicas.cpus",
    "replicas.gpus",
    "training.steps",
    "training.loader",
    "training.trackers",
    "training.log_interval_steps",
    "training.evaluate_interval_steps",
    "training.checkpoint_interval_steps",
    "exchange.transport",
    "exchange.keep_snapshots",
    "exchange.start_together_s",
)
"""Keys that a resumed job may change, with all below them."""

FORK = (
    *RESUME,
    "seed",
    "data",
    "controls",
    "exchange",
    "replicas.ranks",
    "training.batch_size",
    "training.accumulate",
    "training.optimizer",
    "training.schedule",
    "training.weight_decay_schedule",
    "training.clip_norm",
    "training.compile",
    "training.deterministic",
    "training.device",
    "method.weight",
    "method.weight_schedule",
    "method.temperature",
    "method.divergence",
    "method.harm_guard",
    "method.critics.learning_rate",
    "method.critics.weight_decay",
    "method.burn_in_steps",
    "method.epsilon",
    "method.alpha",
    "method.order",
    "method.form",
    "method.label_weight",
    "method.feature_weight",
    "method.adversarial_learning_rate",
    "method.adversarial_weight_decay",
    "method.outer_learning_rate",
    "method.outer_momentum",
)
"""Keys that a fork may change. Of all others (recipe, kind of method, number of replicas, parameter groups, precision,
moving averages) the checkpoint has tensors that would not fit."""

_ALLOWED: dict[Way, tuple[str, ...]] = {"resume": RESUME, "fork": FORK}


def child_spec(parent: JobSpec, changes: Mapping[str, Any], way: Way) -> JobSpec:
    """The spec of the job that goes on from one of spec `parent`: tables are merged key by key, lists and what gets
    another `kind` are replaced.

    A resumed job that gets more steps keeps the burn-in of its parent, which else would grow with them. Raises
    `SpecError`.
    """
    child = parse_spec(merged(parent.model_dump(mode="json"), changes))
    problems = [problem for path in changed(parent, child) if (problem := _refused(path, parent, child, way))]
    if way == "fork" and child.controls:
        problems.append(
            Problem(
                "controls",
                "a fork begins with trained weights, and a control would not; set controls to [], and fork"
                " a job of method 'solo' to compare with",
            )
        )
    if problems:
        raise SpecError(problems)
    if way == "resume" and child.training.steps != parent.training.steps and isinstance(child.method, Codistillation):
        method = child.method.model_copy(update={"burn_in_steps": parent.burn_in_steps})
        return child.model_copy(update={"method": method})
    return child


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` put over it, table by table; another `kind` begins a table anew."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and value.get("kind") in (None, old.get("kind")):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def changed(parent: JobSpec, child: JobSpec) -> list[str]:
    """Dotted paths of all that differs, as deep as it can be told; a table of another kind counts as its `kind`."""
    return list(_differences(parent.model_dump(mode="json"), child.model_dump(mode="json"), ""))


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict) and path != "labels":
        if old.get("kind") != new.get("kind"):
            yield f"{path}.kind"
            return
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path


def _refused(path: str, parent: JobSpec, child: JobSpec, way: Way) -> Problem | None:
    allowed = _ALLOWED[way]
    if not _is_within(path, allowed):
        also = " (a fork may)" if way == "resume" and _is_within(path, FORK) else ""
        doer = "resumed job" if way == "resume" else "fork"
        return Problem(path, f"a {doer} may not change this{also}; it may change {', '.join(allowed)}", allowed)
    if path == "training.steps" and way == "resume" and child.training.steps < parent.training.steps:
        steps = parent.training.steps
        return Problem(path, f"a resumed job may only have more steps than its parent, which has {steps}")
    return None


def _is_within(path: str, keys: tuple[str, ...]) -> bool:
    return any(path == key or path.startswith(f"{key}.") for key in keys)
