"""Each change that a request brings about leaves exactly one row, and what changes nothing leaves none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.status import State
from tests.unit.jobs.test_lineage_routes import World

SPEC = {"name": "pair", "training": {"steps": 10}}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    with world.http:
        yield world
    world.store.close()


CHANGES = {
    ("POST", "/api/v1/jobs"): ("submit", SPEC),
    ("PATCH", "/api/v1/jobs/{waits}"): ("priority", {"priority": 3}),
    ("POST", "/api/v1/jobs/{waits}/cancel"): ("cancel", None),
    ("POST", "/api/v1/jobs/{ended}/resume"): ("resume", {}),
    ("POST", "/api/v1/jobs/{ended}/fork"): ("fork", {}),
    ("DELETE", "/api/v1/jobs/{other}"): ("delete", None),
}


def rows(world: World) -> list[tuple[str, str]]:
    return [(row.action, row.request_id) for row in world.store.audit()]


def test_every_route_that_changes_something_leaves_one_row(world: World) -> None:
    ids = {"waits": world.submit(), "ended": world.parent(), "other": world.parent()}
    for (method, path), (action, body) in CHANGES.items():
        before = rows(world)
        more: dict[str, Any] = {} if body is None else {"json": body}
        answer = world.http.request(method, path.format(**ids), headers={"X-Request-Id": f"r-{action}"}, **more)
        assert answer.is_success, answer.text
        assert rows(world) == [*before, (action, f"r-{action}")], path
    app: Any = world.http.app
    unsafe = {
        (method.upper(), path)
        for path, item in app.openapi()["paths"].items()
        for method in item
        if method in {"post", "put", "patch", "delete"} and not path.endswith(":validate")
    }
    known = {(method, path.partition("{")[0] + path.partition("}")[2]) for method, path in CHANGES}
    of_jobs = {(method, path.replace("{job_id}", "")) for method, path in unsafe if path.startswith("/api/v1/jobs")}
    assert of_jobs == known, "a new route has its case here"


def test_what_changes_nothing_leaves_no_row(world: World) -> None:
    waits, ended = world.submit(), world.parent()
    before = rows(world)
    for method, path, body in (
        ("POST", "/api/v1/jobs:validate", SPEC),
        ("POST", "/api/v1/jobs", {"name": "A"}),
        ("POST", f"/api/v1/jobs/{ended}/cancel", None),
        ("POST", f"/api/v1/jobs/{ended}/resume:validate", {}),
        ("POST", f"/api/v1/jobs/{waits}/resume", {}),
        ("PATCH", f"/api/v1/jobs/{ended}", {"priority": 3}),
        ("DELETE", f"/api/v1/jobs/{waits}", None),
        ("DELETE", "/api/v1/jobs/nobody-aaaaaa", None),
        ("GET", f"/api/v1/jobs/{waits}", None),
    ):
        world.http.request(method, path, **({} if body is None else {"json": body}))
        assert rows(world) == before, (method, path)


def test_what_the_manager_does_by_itself_is_no_request(world: World) -> None:
    job_id = world.submit()
    before = rows(world)
    for _ in range(3):
        world.tick()
    job = world.store.get(job_id)
    assert job is not None
    assert job.state is State.STARTING
    assert rows(world) == before, "its changes are in the job's transitions"
