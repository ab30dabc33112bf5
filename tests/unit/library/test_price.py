"""The price of a job, against sums done by hand and against what training then takes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from codistill.describe import describe, serve
from codistill.memory import MemoryGauge, process_bytes
from codistill.outcome import ReplicaOutcome, attempt_result
from codistill.price import (
    PROCESS_BYTES,
    PastRun,
    Spread,
    estimate,
    exchanges_of,
    likeness,
    node_bytes,
    past_run,
    size_key,
    taken,
)
from codistill.spec import JobSpec
from tests.support import merge, new_run, run_in_turns, small_spec

FACTS = {
    "parameters": 100,
    "bytes_received_per_exchange": 400,
    "memory_bytes_per_rank": {"total": 5000},
    "phases": {"train": {"flops_per_step": 300, "teachers_flops_per_step": 100}},
}


def changed(**parts: Any) -> JobSpec:
    return small_spec(**merge({"replicas": {"count": 2}, "method": {"burn_in_steps": 3}}, parts))


SPEC = changed()


@pytest.mark.parametrize(
    ("parts", "alike"),
    [
        ({"name": "other", "seed": 7, "labels": {"a": "b"}, "training": {"steps": 99}}, True),
        ({"method": {"burn_in_steps": 1, "weight": 3.0}, "limits": {"max_failures": 0}}, True),
        ({"training": {"batch_size": 8}}, False),
        ({"training": {"precision": "bf16"}}, False),
        ({"replicas": {"count": 3}}, False),
        ({"replicas": {"cpus": 2.0}}, False),
        ({"method": {"kind": "solo"}}, False),
        ({"method": {"kind": "knowledge_distillation", "teacher": {"kind": "trained_first", "steps": 5}}}, False),
        ({"exchange": {"interval_steps": 7}}, False),
        ({"recipe": {"train_size": 999}}, False),
    ],
)
def test_jobs_are_alike_when_their_steps_take_equally_long(parts: dict[str, Any], alike: bool) -> None:
    assert (likeness(changed(**parts)) == likeness(SPEC)) is alike


def test_the_teacher_decides_how_long_a_step_takes() -> None:
    method = {"kind": "knowledge_distillation", "teacher": {"kind": "job", "job": "one", "replica": 0}}
    one = small_spec(method=method)
    assert likeness(one) == likeness(small_spec(method=method, seed=7))
    assert likeness(one) != likeness(small_spec(method={**method, "teacher": {**method["teacher"], "job": "two"}}))


def test_facts_are_the_same_for_all_that_sizes_do_not_depend_on() -> None:
    assert size_key(changed(name="other", seed=7, limits={"max_failures": 0})) == size_key(SPEC)
    assert size_key(changed(training={"steps": 99})) != size_key(SPEC)


def test_a_price_is_the_sum_of_its_parts() -> None:
    spec = changed(training={"steps": 12}, exchange={"interval_steps": 2}, controls=["solo"])
    runs = [PastRun("fast", 0.5, 10.0, 300), PastRun("fast", 1.0, 20.0, 200), PastRun("slow", 4.0, 8.0)]
    price = estimate(spec, FACTS, runs)
    assert {name: price[name] for name in ("parameters", "memory_bytes_per_rank", "steps", "controls_steps")} == {
        "parameters": 100,
        "memory_bytes_per_rank": 5000,
        "steps": 12,
        "controls_steps": 12,
    }
    # Versions 3, 4, 6, 8, 10 of each of two replicas.
    assert (price["exchanges"], price["bytes_per_exchange"], price["bytes_received"]) == (5, 400, 2 * 5 * 400)
    averaged = estimate(spec, {**FACTS, "gradient_bytes_per_step": 30}, runs)
    assert averaged["bytes_received"] == 2 * 5 * 400 + 2 * 12 * 30, "among ranks, in every step"
    fast, slow = price["speeds"]
    assert (fast["hardware"], fast["runs"], fast["step_s"]) == ("fast", 2, {"low": 0.5, "median": 0.75, "high": 1.0})
    assert (fast["process_bytes_per_rank"], slow["process_bytes_per_rank"]) == (300, None)
    # A control is three quarters of the work: 12 steps of 0.5 s, and 9 more; of 1 s, likewise.
    assert fast["controls_seconds"] == {"low": 4.5, "median": 6.75, "high": 9.0}
    assert fast["seconds"] == {"low": 10 + 6 + 4.5, "median": (20.5 + 41) / 2, "high": 20 + 12 + 9.0}
    assert slow["seconds"]["median"] == 8 + 12 * 4 + 36
    assert price["unknown"] == []


def test_what_is_not_known_is_null_and_named() -> None:
    price = estimate(SPEC, "no torch", [])
    assert price["unknown"] == ["sizes: no torch", "seconds: no job like this one has trained to its end here"]
    assert (price["parameters"], price["bytes_received"], price["speeds"]) == (None, None, [])


def test_of_a_node_a_rank_takes_its_process_its_tensors_and_a_copy_of_what_is_saved() -> None:
    parts = {"weights": 1, "gradients": 20, "optimizer": 300, "average": 4000, "outgoing": 50_000, "outer": 600_000}
    memory = {**parts, "total": 10**7}
    saved = 1 + 300 + 4000 + 600_000
    assert node_bytes(SPEC, memory) == PROCESS_BYTES + 10**7 + saved
    assert node_bytes(changed(replicas={"gpus": 1.0}), memory) == PROCESS_BYTES + 50_000 + saved
    assert node_bytes(SPEC, {}) is None
    on_gpu = estimate(changed(replicas={"gpus": 1.0}), FACTS, [PastRun("any", 1.0, 2.0)])
    assert on_gpu["unknown"] == ["whether its tensors fit: nodes do not tell how much memory their GPUs have"]


def test_a_process_takes_no_more_than_a_quarter_above_what_was_told(tmp_path: Path) -> None:
    """In a process of its own, whose memory is not that of the tests. Its tensors are a good third of it."""
    spec = small_spec(
        method={"kind": "solo"},
        replicas={"count": 1},
        recipe={"width": 256, "train_size": 1000},
        training={"batch_size": 1000, "steps": 1, "optimizer": {"kind": "adamw"}},
    )
    code = (
        "import sys, pathlib; from tests.support import *;"
        "run_in_turns(new_run(pathlib.Path(sys.argv[1]), parse_spec(sys.argv[2])));"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    command = [sys.executable, "-c", code, str(tmp_path), spec.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    took = int(done.stdout) * 1024
    told = estimate(spec, describe(spec), [])["node_bytes_per_rank"]
    assert told / 1.25 < took < told * 1.25


def test_what_is_trained_already_costs_nothing() -> None:
    spec = changed(training={"steps": 12}, exchange={"interval_steps": 2})
    price = estimate(spec, FACTS, [PastRun("any", 1.0, 2.0)], steps_done=7)
    assert (price["steps"], price["exchanges"], price["speeds"][0]["seconds"]["median"]) == (5, 2, 7.0)  # 8, 10


@pytest.mark.parametrize("method", ["codistillation", "local_sgd", "solo"])
@pytest.mark.parametrize("steps", [3, 4, 11, 12])
def test_exchanges_are_those_that_happen(method: str, steps: int, tmp_path: Path) -> None:
    more = {"burn_in_steps": 3} if method == "codistillation" else {}
    spec = small_spec(method={"kind": method, **more}, training={"steps": steps})
    results = run_in_turns(new_run(tmp_path, spec))
    received = sum(result["bytes_received"] for result in results.values())
    price = estimate(spec, describe(spec), [])
    assert price["bytes_received"] == received
    assert exchanges_of(spec) == price["exchanges"]


def outcome(steps: int = 10, step_s: float | None = 0.5, **others: Any) -> ReplicaOutcome:
    given = {
        "incarnations": 1,
        "bytes_received": 100,
        "memory_bytes": 7,
        "process_bytes": 70,
        "hardware": "chip",
        **others,
    }
    return ReplicaOutcome("succeeded", steps=steps, step_s=step_s, **given)


def test_a_past_run_is_what_a_result_says() -> None:
    replicas = {
        "replica-0": outcome(step_s=0.5),
        "replica-1": outcome(step_s=0.7, memory_bytes=9, process_bytes=None),
        "solo-0": outcome(step_s=0.3, memory_bytes=99, process_bytes=99),
        "solo-1": outcome(step_s=0.2),
    }
    result = attempt_result("job", 1, replicas, started_at=100.0, ended_at=120.0, estimate={"steps": 10})
    assert result["took"] == {
        "seconds": 20.0,
        "step_s": 0.6,
        "hardware": "chip",
        "memory_bytes_per_rank": 9,
        "process_bytes_per_rank": 70,
        "bytes_received": 200,
    }
    assert result["estimate"] == {"steps": 10}
    assert past_run(result) == PastRun("chip", 0.6, 20 - 7.0 - 3.0, 70)  # the slowest of each arm


@pytest.mark.parametrize(
    "replicas",
    [
        {"replica-0": outcome(step_s=None)},
        {"replica-0": outcome(incarnations=2)},
        {"replica-0": ReplicaOutcome("failed", steps=3, step_s=0.5, incarnations=1)},
    ],
)
def test_no_speed_is_taken_from_what_was_no_whole_training(replicas: dict[str, ReplicaOutcome]) -> None:
    assert past_run(attempt_result("job", 1, replicas, started_at=0.0, ended_at=9.0)) is None


def test_no_speed_is_taken_from_a_second_attempt_or_an_older_result() -> None:
    result = attempt_result("job", 1, {"replica-0": outcome()}, started_at=0.0, ended_at=9.0)
    assert past_run(result) is not None
    assert past_run({**result, "fence": 2}) is None
    assert past_run({name: value for name, value in result.items() if name != "took"}) is None
    assert past_run(None) is None


def test_of_replicas_that_did_not_end_nothing_is_told() -> None:
    assert taken({}, 1.0) == {
        "seconds": 1.0,
        "step_s": None,
        "hardware": None,
        "memory_bytes_per_rank": None,
        "process_bytes_per_rank": None,
        "bytes_received": 0,
    }


def test_a_spread_is_least_middle_and_most() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(1.0, 3.0, 10.0)


def test_training_tells_its_speed_its_memory_and_its_hardware(tmp_path: Path) -> None:
    result = run_in_turns(new_run(tmp_path, SPEC))[0]
    assert 0 < result["step_s"] < result["seconds"]
    assert result["hardware"]
    assert result["memory_bytes"] is None
    assert 10**8 < result["process_bytes"] < 10**11


def test_a_process_tells_the_most_that_it_was_in_memory_with() -> None:
    before = process_bytes()
    held = torch.ones(before + (64 << 20), dtype=torch.uint8)
    del held
    assert before + (64 << 20) <= process_bytes() < 3 * before + (64 << 20)
    assert MemoryGauge(torch.device("cpu")).tensors_bytes() is None


def test_specs_are_answered_line_by_line() -> None:
    answers = io.StringIO()
    serve(["no json\n", SPEC.model_dump_json() + "\n"], answers)
    ready, bad, good = map(json.loads, answers.getvalue().splitlines())
    assert ready == {"ready": True}
    assert "JSON" in bad["unknown"]
    assert good["facts"] == json.loads(json.dumps(describe(SPEC)))
