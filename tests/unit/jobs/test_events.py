"""Server-sent events over the real routes: what is told, to whom, from where on, and when a stream ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from codistill.capacity import Node
from codistill.run_dir import RunDir, write_json
from jobs.callers import LOCAL, Scope
from jobs.door import DoorRules
from jobs.job import Reason
from jobs.routes import build_api
from jobs.routes.backend import Backend, EventTimes
from jobs.status import State
from jobs.store import Store
from tests.stores import new_store
from tests.unit.jobs.fakes import beat

PAIR = {"name": "pair", "training": {"steps": 10}}


@dataclass
class Event:
    name: str
    data: dict[str, Any]
    id: int | None


class Listening:
    """A service with tokens for ann and bob whose streams end after one look."""

    def __init__(self, root: Path) -> None:
        self.storage = root / "runs"
        self.storage.mkdir()
        self.store = Store.open(new_store(root))
        times = EventTimes(poll_s=0.0, stream_s=0.0)
        backend = Backend(self.store, self.storage, lambda: [Node(2.0, 0.0)], DoorRules(needs_token=True), events=times)
        self.http = TestClient(build_api(backend), "http://127.0.0.1")
        self.tokens = {
            who: self.store.accounts.create(who, Scope.WRITE, lifetime_s=None, by=LOCAL)[1] for who in ("ann", "bob")
        }
        self.tokens["root"] = self.store.accounts.create("root", Scope.ADMIN, lifetime_s=None, by=LOCAL)[1]

    def submit(self, owner: str) -> str:
        return self.http.post("/api/v1/jobs", json=PAIR, headers=self.headers(owner)).json()["id"]

    def headers(self, who: str, last: int | str | None = None) -> dict[str, str]:
        more = {} if last is None else {"Last-Event-ID": str(last)}
        return {"Authorization": f"Bearer {self.tokens[who]}", **more}

    def move(self, job_id: str, *states: State, **values: Any) -> None:
        for state in states:
            job = self.store.get(job_id)
            assert job is not None
            self.store.move(job, state, **values, **({"fence": job.fence + 1} if state is State.STARTING else {}))

    def heard(self, who: str, path: str, last: int | None = None) -> list[Event]:
        answer = self.http.get(f"/api/v1{path}", headers=self.headers(who, last))
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [event(block) for block in answer.text.split("\n\n") if block]


def event(block: str) -> Event:
    lines = dict(line.split(": ", 1) for line in block.splitlines())
    return Event(lines["event"], json.loads(lines["data"]), int(lines["id"]) if "id" in lines else None)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    made = Listening(tmp_path)
    with made.http:
        yield made
    made.store.close()


def test_a_jobs_stream_tells_its_changes_in_order_and_goes_on_after_the_last(listening: Listening) -> None:
    job, other = listening.submit("ann"), listening.submit("ann")
    listening.move(other, State.ADMITTED)
    listening.move(job, State.ADMITTED, State.STARTING)
    heard = listening.heard("ann", f"/jobs/{job}/events")
    changes = [e for e in heard if e.name == "state"]
    assert [(e.data["job"], e.data["state"], e.data["fence"]) for e in changes] == [
        (job, "QUEUED", 0), (job, "ADMITTED", 0), (job, "STARTING", 1),
    ]  # fmt: skip
    ids = [e.id or 0 for e in changes]
    assert ids == sorted(set(ids))
    listening.move(job, State.RUNNING)
    more = listening.heard("ann", f"/jobs/{job}/events", last=ids[-1])
    assert [e.data["state"] for e in more if e.name == "state"] == ["RUNNING"]
    assert changes[0].data["time"].endswith("Z")


def test_progress_comes_out_of_the_heartbeats_and_has_no_number(listening: Listening) -> None:
    job = listening.submit("ann")
    listening.move(job, State.ADMITTED, State.STARTING)
    write_json(RunDir(listening.storage, job).heartbeat(1, "replica-0"), beat(0, step=7))
    (told,) = [e for e in listening.heard("ann", f"/jobs/{job}/events") if e.name == "progress"]
    expected = {"job": job, "state": "STARTING", "phase": "distill", "completed": 7, "total": 20, "unit": "steps"}
    assert (told.data, told.id) == (expected, None), "an event without a number leaves Last-Event-ID as it was"


def test_all_jobs_are_heard_from_now_on_or_after_a_number(listening: Listening) -> None:
    job = listening.submit("ann")
    assert listening.heard("ann", "/events") == []
    since = listening.store.newest_change()
    listening.move(job, State.FAILED, reason=Reason("storage", "gone\nand more"))
    (told,) = listening.heard("ann", "/events", last=since)
    assert (told.data["state"], told.data["reason"]["message"]) == ("FAILED", "gone\nand more")
    assert [e.data["state"] for e in listening.heard("ann", "/events", last=0)] == ["QUEUED", "FAILED"]


def test_a_tenant_hears_of_its_own_jobs_alone(listening: Listening) -> None:
    job = listening.submit("ann")
    listening.move(job, State.ADMITTED, State.STARTING)
    assert listening.heard("bob", "/events", last=0) == []
    assert {e.name for e in listening.heard("root", "/events", last=0)} == {"state", "progress"}
    answer = listening.http.get(f"/api/v1/jobs/{job}/events", headers=listening.headers("bob"))
    assert (answer.status_code, answer.json()["code"]) == (404, "no_such_job")


def test_a_number_that_is_none_is_422(listening: Listening) -> None:
    for bad in ("x", "-1", str(2**63)):
        assert listening.http.get("/api/v1/events", headers=listening.headers("ann", bad)).status_code == 422


@pytest.mark.parametrize("state", [State.CANCELLED, State.FAILED])
def test_a_stream_ends_with_its_job(listening: Listening, tmp_path: Path, state: State) -> None:
    job = listening.submit("ann")
    listening.move(job, state)
    backend = Backend(listening.store, listening.storage, list, events=EventTimes(poll_s=60.0, stream_s=600.0))
    with TestClient(build_api(backend), "http://127.0.0.1") as patient:
        text = patient.get(f"/api/v1/jobs/{job}/events").text  # would last for ten minutes
    assert f'"{state}"' in text


def test_what_did_not_move_is_not_told_again(listening: Listening) -> None:
    job = listening.submit("ann")
    listening.move(job, State.ADMITTED, State.STARTING)
    backend = Backend(listening.store, listening.storage, list, events=EventTimes(poll_s=0.001, stream_s=0.1))
    with TestClient(build_api(backend), "http://127.0.0.1") as patient:
        text = patient.get(f"/api/v1/jobs/{job}/events").text
    assert text.count("event: progress") == 1
    assert text.count("event: state") == 3
