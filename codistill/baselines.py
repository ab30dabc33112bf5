"""What a job is compared with: the same data, steps, seeds and hardware, and another way of working together. Pure.

A baseline sees as many samples in each step as all replicas of the job together, on as many processes, and `bytes_sent`
of its `result.json`, added up over its replicas, is everything that travelled, as it is for the job.
"""

from __future__ import annotations

from typing import Any, Literal, assert_never

from codistill.spec import JobSpec
from codistill.spec_errors import Problem, SpecError, parse_spec

Baseline = Literal["ddp", "local_sgd", "diloco"]
"""`ddp`: one model, whose gradients all processes average in every step (data parallel). `local_sgd` and `diloco`: one
model, which replicas train apart and average at every exchange."""

LONGEST_NAME = 63


def baseline_of(spec: JobSpec, baseline: Baseline) -> JobSpec:
    """The spec of `baseline` for the job `spec`, named after both; without controls, which are compared with teachers.

    The learning rate stays as it is, though a larger batch (`ddp`) or an outer optimizer often wants another: a fair
    comparison tunes each arm. Raises `SpecError` when there is nothing to be put together, or when the job has a
    setting that the baseline cannot have.
    """
    count = spec.replicas.count
    if count < 2:
        raise SpecError([Problem("replicas.count", "is 1, and a baseline joins what several replicas do; raise it")])
    if spec.recipes:
        raise SpecError(
            [Problem("recipes", "gives replicas models of their own, and a baseline trains one; leave it out")]
        )
    values = spec.model_dump(mode="json")
    end = f"-{baseline.replace('_', '-')}"
    values |= {"name": spec.name[: LONGEST_NAME - len(end)] + end, "controls": []}
    match baseline:
        case "ddp":
            values["method"] = {"kind": "solo"}
            values["exchange"] = {}
            values["replicas"] |= {"count": 1, "ranks": count * spec.replicas.ranks}
            values["training"] |= {"batch_size": count * spec.training.batch_size}
        case "local_sgd" | "diloco":
            values["method"] = {"kind": baseline}
            values["exchange"] = _all_at_once(values["exchange"])
        case _:
            assert_never(baseline)
    return parse_spec(values)


def _all_at_once(exchange: dict[str, Any]) -> dict[str, Any]:
    """As often, by the same way and in the same precision, between all, each waiting for the others."""
    kept = {key: exchange[key] for key in ("transport", "interval_steps", "precision")}
    return {**kept, "topology": {"kind": "all"}, "mode": "lockstep"}
