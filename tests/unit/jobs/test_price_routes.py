"""What a job will take, told at the door; and beside it, at the end, what it took."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from codistill.capacity import Node
from codistill.outcome import ReplicaOutcome, attempt_result
from codistill.price import PROCESS_BYTES
from codistill.run_dir import RunDir, read_json, write_json
from codistill.spec import JobSpec
from codistill.words import size
from jobs.callers import LOCAL, Caller, Scope
from jobs.cli.price import price_lines
from jobs.routes import build_api
from jobs.routes.backend import Backend
from jobs.routes.pricing import price_of
from jobs.status import State
from tests.unit.jobs.test_api import problem
from tests.unit.jobs.test_lineage_routes import World

FACTS: dict[str, Any] = {
    "parameters": 1_234_000,
    "bytes_received_per_exchange": 38_440,
    "memory_bytes_per_rank": {"total": 2_500_000},
    "phases": {"train": {"flops_per_step": 1, "teachers_flops_per_step": 1}},
}

TAKEN = PROCESS_BYTES + 2_500_000
"""Of its node's memory, by a rank."""


class Priced(World):
    """Routes that are told the same facts of every spec."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[JobSpec] = []
        self.known: dict[str, Any] | str = FACTS
        self.backend = Backend(self.store, self.storage, lambda: self.nodes, facts=self._facts)
        self.http = TestClient(build_api(self.backend), "http://127.0.0.1")

    def _facts(self, spec: JobSpec) -> dict[str, Any] | str:
        self.asked.append(spec)
        return self.known

    def succeed(self, job_id: str, step_s: float = 0.5, seconds: float = 20.0) -> None:
        """Both replicas train their 10 steps."""
        run = self.run(job_id)
        ended = ReplicaOutcome("succeeded", steps=10, incarnations=1, step_s=step_s, memory_bytes=9, hardware="chip")
        replicas = {"replica-0": ended, "replica-1": ended}
        told = read_json(run.estimate)
        write_json(run.result(1), attempt_result(job_id, 1, replicas, started_at=0, ended_at=seconds, estimate=told))
        self.move(job_id, State.RUNNING, State.SUCCEEDED)


@pytest.fixture
def priced(tmp_path: Path) -> Iterator[Priced]:
    made = Priced(tmp_path)
    with made.http:
        yield made
    made.store.close()


def test_the_answer_to_a_job_and_to_a_question_is_its_price(priced: Priced) -> None:
    spec = {"name": "pair", "training": {"steps": 10}, "method": {"kind": "solo"}}
    first = priced.http.post("/api/v1/jobs", json=spec).json()
    assert first["estimate"]["parameters"] == 1_234_000
    assert first["estimate"]["speeds"] == []
    priced.succeed(first["id"])
    for answer in (priced.http.post("/api/v1/jobs", json=spec), priced.http.post("/api/v1/jobs:validate", json=spec)):
        (speed,) = answer.json()["estimate"]["speeds"]
        assert (speed["hardware"], speed["runs"], speed["seconds"]["median"]) == ("chip", 1, 20.0)
    assert priced.get(f"/{first['id']}")["estimate"] == first["estimate"], "it stays what was told"


@pytest.mark.parametrize(
    ("more_bytes", "ranks", "path"), [(0, 2, None), (-1, 2, "replicas"), (0, 1, "replicas"), (-1, 1, "recipe")]
)
def test_what_no_node_has_the_memory_for_is_refused(
    priced: Priced, more_bytes: int, ranks: int, path: str | None
) -> None:
    """Two ranks, on a node with memory for one or two, to the byte."""
    priced.nodes[:] = [Node(2.0, 0.0, float(ranks * TAKEN + more_bytes))]
    spec = {"name": "pair", "training": {"steps": 10}}
    for where in ("/api/v1/jobs", "/api/v1/jobs:validate"):
        answer = priced.http.post(where, json=spec)
        if path is None:
            assert answer.status_code in (200, 202)
            assert answer.json()["estimate"]["node_bytes_per_rank"] == TAKEN
            continue
        value = problem(answer, 422, "never_fits")
        assert value["errors"][0]["path"] == path
        assert f"2 ranks of 1 CPU, {size(TAKEN)} of memory" in value["detail"]
        assert f"of memory {size(ranks * TAKEN + more_bytes)} at most" in value["detail"]
    assert len(priced.store.page(limit=9)) == int(path is None)


def test_what_is_reserved_is_what_was_told(priced: Priced) -> None:
    """And where nothing is known, nothing is refused."""
    priced.nodes[:] = [Node(2.0, 0.0, 2.0 * TAKEN)]
    told = priced.submit()
    priced.known = "still starting"
    unknown = priced.submit()
    jobs = {job.id: job for job in priced.store.page(limit=9)}
    assert (jobs[told].demand.memory_bytes, jobs[unknown].demand.memory_bytes) == (TAKEN, 0)
    assert jobs[unknown].estimate is not None
    assert jobs[unknown].estimate["unknown"][0] == "sizes: still starting"


def test_a_job_that_goes_on_may_be_too_large_as_well(priced: Priced) -> None:
    parent = priced.parent(step=7, training={"steps": 10})
    priced.nodes[:] = [Node(2.0, 0.0, 1000.0)]
    problem(priced.go_on(parent, "resume", {"training": {"steps": 12}}), 422, "never_fits")


def test_a_job_that_goes_on_pays_for_what_is_left(priced: Priced) -> None:
    parent = priced.parent(step=7, training={"steps": 10})
    child = priced.go_on(parent, "resume", {"training": {"steps": 12}}).json()
    assert child["estimate"]["steps"] == 5


def test_speeds_of_others_are_not_told(priced: Priced) -> None:
    spec = {"name": "pair", "training": {"steps": 10}}
    priced.succeed(priced.submit(**spec))
    asked = priced.asked[0]
    bob, root = Caller("bob", Scope.WRITE), replace(LOCAL)
    assert price_of(priced.backend, bob, asked)["speeds"] == []
    assert len(price_of(priced.backend, root, asked)["speeds"]) == 1


@pytest.mark.parametrize("spoilt", ["gone", "no JSON", "of an older version"])
def test_a_past_run_that_cannot_be_read_is_left_out(priced: Priced, spoilt: str) -> None:
    job_id = priced.submit()
    priced.succeed(job_id)
    path = RunDir(priced.storage, job_id).result(1)
    if spoilt == "gone":
        path.unlink()
    elif spoilt == "no JSON":
        path.write_text("{")
    else:
        result = read_json(path)
        del result["took"]["hardware"]
        write_json(path, result)
    again = priced.http.post("/api/v1/jobs:validate", json={"name": "pair", "training": {"steps": 10}})
    assert again.json()["estimate"]["speeds"] == []


def test_the_run_directory_knows_what_was_told(priced: Priced) -> None:
    job_id = priced.submit()
    priced.tick()  # admits it
    priced.tick()  # begins it
    told = priced.get(f"/{job_id}")["estimate"]
    assert told["parameters"] == 1_234_000
    assert read_json(RunDir(priced.storage, job_id).estimate) == told


def test_a_price_in_words() -> None:
    spread = {"low": 70.0, "median": 90.0, "high": 100.0}
    estimate = {
        "parameters": 1_234_000,
        "memory_bytes_per_rank": 2_500_000,
        "exchanges": 12,
        "bytes_per_exchange": 38_440,
        "speeds": [
            {
                "hardware": "chip\x1b[2J",
                "runs": 2,
                "step_s": {"low": 0.02, "median": 0.0251, "high": 0.03},
                "process_bytes_per_rank": 702_000_000,
                "seconds": spread,
                "controls_seconds": {"low": 30.0, "median": 31.0, "high": 32.0},
            }
        ],
        "unknown": [],
    }
    assert price_lines(estimate) == [
        "will take: 1,234,000 parameters, 2.5 MB of tensors per rank, 12 exchanges of 38.4 kB per replica",
        "will take: 1 min 30 s (1 min 10 s to 1 min 40 s), 31 s of it for controls, 25.1 ms a step,"
        " 702.0 MB a process: from 2 runs on chip?[2J",
    ]
    took = {
        "seconds": 95.0, "step_s": 1.5, "memory_bytes_per_rank": 2_600_000, "process_bytes_per_rank": None,
        "bytes_received": 999, "hardware": "x",
    }  # fmt: skip
    assert price_lines(None, took) == [
        "took: 1 min 35 s, 1.5 s a step, 2.6 MB of tensors per rank, 999 B received, on x"
    ]
    unknown = {**estimate, "parameters": None, "speeds": [], "unknown": ["sizes: no torch"]}
    assert price_lines(unknown) == ["unknown: sizes: no torch"]
