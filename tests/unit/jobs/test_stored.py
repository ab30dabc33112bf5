"""What jobs leave in the storage: measured by the manager, told by owner, and a limit on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from codistill.capacity import Node
from codistill.run_dir import RunDir
from codistill.spec_errors import parse_spec
from jobs.callers import LOCAL, Caller, Scope
from jobs.door import DoorRules
from jobs.job import Job
from jobs.routes import build_api
from jobs.routes.backend import Backend
from jobs.status import State
from jobs.store import Store
from jobs.store_terms import Quota, StillNeeded, StorageTaken, Submission
from jobs.stored import AGAIN_S, REST_S, Measurer, bytes_under
from tests.unit.jobs.fakes import Clock, spec

ANN, BOB = (Caller(name, Scope.WRITE) for name in ("ann", "bob"))


def begun(store: Store, storage: Path, by: Caller, num_bytes: int, **change: Any) -> Job:
    """A job that runs and has left so much."""
    job = store.submit(Submission(spec(**change), by))
    job = store.move(store.move(job, State.ADMITTED), State.STARTING, fence=1)
    leave(storage, job, "one", num_bytes)
    return job


def leave(storage: Path, job: Job, name: str, num_bytes: int) -> None:
    directory = RunDir(storage, job.id).root / "checkpoints"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(b"x" * num_bytes)


def stored(store: Store) -> dict[str, int]:
    return {usage.owner: usage.stored_bytes for usage in store.usage(None)}


def test_files_count_and_links_do_not(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "deep").write_bytes(b"x" * 700)
    (tmp_path / "a" / "near").write_bytes(b"x" * 30)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / "b" / "deep")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    assert bytes_under(tmp_path / "a") == 730
    assert bytes_under(tmp_path / "nowhere") == 0


def test_each_job_is_measured_in_its_turn_and_once_more_after_its_end(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    measurer = Measurer(store, tmp_path, clock)
    first, second = begun(store, tmp_path, ANN, 100), begun(store, tmp_path, BOB, 20)
    store.submit(Submission(spec(), BOB))  # has not begun: it has left nothing
    clock.now += 1.0
    measurer.step()
    assert stored(store) == {"ann": 100, "bob": 0}, "one in a round"
    measurer.step()
    assert stored(store) == {"ann": 100, "bob": 20}
    leave(tmp_path, first, "two", 11)
    measurer.step()
    clock.now += REST_S
    measurer.step()
    assert stored(store)["ann"] == 100, "it was measured just now"
    clock.now += AGAIN_S
    for _ in range(2):
        measurer.step()
    assert stored(store)["ann"] == 111
    store.move(first, State.FAILED)
    leave(tmp_path, first, "last", 5)
    clock.now += REST_S
    measurer.step()
    assert stored(store)["ann"] == 116
    leave(tmp_path, first, "by hand", 1000)
    store.move(second, State.FAILED)
    for _ in range(4):
        clock.now += AGAIN_S
        measurer.step()
    assert stored(store) == {"ann": 116, "bob": 20}, "what has ended is not looked at for ever"


def test_an_owner_who_has_left_as_much_as_may_be_gets_no_further_job(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    quota = Quota(stored_bytes_per_owner=1000)
    job = begun(store, tmp_path, ANN, 999)
    store.measured(job.id, 999)
    store.submit(Submission(spec(), ANN), quota)
    store.measured(job.id, 1000)
    with pytest.raises(StorageTaken, match=r"jobs of ann have left 1\.0 kB in the storage, and may leave 1\.0 kB"):
        store.submit(Submission(spec(), ANN), quota)
    store.submit(Submission(spec(), BOB), quota)
    store.submit(Submission(spec(), ANN))
    store.delete(store.move(job, State.FAILED), by=ANN)
    store.submit(Submission(spec(), ANN), quota)
    assert stored(store) == {"ann": 0}


def test_over_http_it_is_said_what_to_do(store: Store, clock: Clock, tmp_path: Path) -> None:
    backend = Backend(
        store,
        tmp_path,
        lambda: [Node(8.0, 0.0)],
        DoorRules(needs_token=True),
        Quota(stored_bytes_per_owner=10),
    )
    _, token = store.accounts.create("ann", Scope.WRITE, lifetime_s=None, by=LOCAL)
    headers = {"Authorization": f"Bearer {token}"}
    store.measured(begun(store, tmp_path, ANN, 10).id, 10)
    with TestClient(build_api(backend), "http://127.0.0.1") as http:
        answer = http.post("/api/v1/jobs", json={"name": "more"}, headers=headers)
        told = http.get("/api/v1/usage", headers=headers).json()["items"]
        figures = http.get("/metrics", headers=headers).text
    assert (answer.status_code, answer.json()["code"]) == (403, "storage_quota")
    assert "codistill delete JOB" in answer.json()["detail"]
    assert [one["stored_bytes"] for one in told] == [10]
    assert 'codistill_stored_bytes{owner="ann"} 10.0' in figures


@pytest.mark.parametrize("position", [0, 1])
def test_no_member_of_an_ensemble_that_teaches_can_be_deleted(store: Store, tmp_path: Path, position: int) -> None:
    teachers = [store.move(begun(store, tmp_path, ANN, 1), State.FAILED) for _ in range(2)]
    of = [{"kind": "job", "job": job.id} for job in teachers]
    method = {"kind": "knowledge_distillation", "teacher": {"kind": "ensemble", "of": of}}
    student = store.submit(Submission(parse_spec({"method": method, "replicas": {"count": 1}}), ANN))
    with pytest.raises(StillNeeded, match=f"{student.id} learns from it"):
        store.delete(teachers[position], by=ANN)
    store.move(student, State.CANCELLED)
    store.delete(teachers[position], by=ANN)
