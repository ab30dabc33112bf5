"""Whatever is sent to a route, the answer is one that the OpenAPI document has, and never a 5xx."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from codistill.capacity import Node
from codistill.records import LEDGER, METRICS, Recorder
from codistill.run_dir import RunDir
from jobs.routes import build_api
from jobs.routes.backend import Backend, EventTimes
from jobs.status import State
from jobs.store import Store
from tests.stores import new_store
from tests.unit.jobs.fakes import spec

CASES, CASES_PER_ROUTE = 3000, 90
HEADERS = {"Host": "localhost"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def of(cases: int) -> settings:
    """Hypothesis gives up on what it cannot make after ten attempts for each case."""
    return settings(max_examples=cases, deadline=None, suppress_health_check=list(HealthCheck), database=None)


class World:
    """A service with a job in the queue, one that has ended, and one that runs."""

    def __init__(self, root: Path) -> None:
        (root / "runs").mkdir()
        self.store = Store.open(new_store(root))
        look_once = EventTimes(poll_s=0.0, stream_s=0.0)
        nodes, data = [Node(64.0, 8.0)], root / "data"
        self.app = build_api(Backend(self.store, root / "runs", lambda: nodes, events=look_once, data_home=data))
        self.store.lease.acquire("fuzz", 1e9)
        self.ids = [self.store.create(spec(name=name, labels={"team": "a"})).id for name in ("waits", "ended", "runs")]
        self.move(self.ids[1], State.CANCELLED)
        self.move(self.ids[2], State.ADMITTED)
        running = self.move(self.ids[2], State.STARTING, fence=1)
        run = RunDir(root / "runs", running.id)
        run.create(running.spec)
        run.start_attempt(1, 0.0)
        for kind, schema in (("metrics", METRICS), ("ledger", LEDGER)):
            recorder = Recorder(run.replica(1, "replica-0") / kind, schema, fence=1, incarnation=0)
            if kind == "metrics":
                recorder.add_values(3, {"train/loss": 1.0})
            recorder.flush()

    def move(self, job_id: str, to: State, **more: Any) -> Any:
        job = self.store.get(job_id)
        assert job is not None
        return self.store.move(job, to, **more)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("fuzz"))
    yield made
    made.store.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_answer_is_a_surprise(world: World) -> None:
    """Well-formed and malformed requests to every route of the document."""
    document = schemathesis.openapi.from_asgi("/openapi.json", world.app, headers=HEADERS)
    answers: Counter[int] = Counter()

    def ask(case: schemathesis.Case) -> None:
        if "job_id" in case.path_parameters and len(str(case.path_parameters["job_id"])) % 2:
            case.path_parameters["job_id"] = world.ids[answers.total() % 3]
        response = case.call(headers=HEADERS)
        answers[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    routes = [found.ok() for found in document.get_all_operations()]
    assert len(routes) >= 14
    for route in routes:
        for mode in GenerationMode:
            strategy = route.as_strategy(generation_mode=mode)
            try:
                of(1)(given(strategy)(ask))()
            except Unsatisfiable:  # a route without parameters cannot be asked wrongly; found out in few attempts
                assert mode is GenerationMode.NEGATIVE
            else:
                of(CASES_PER_ROUTE)(given(strategy)(ask))()
    assert answers.total() >= CASES, answers
    assert not [code for code in answers if code >= 500], answers
    assert {200, 202, 404, 422} <= set(answers), answers
