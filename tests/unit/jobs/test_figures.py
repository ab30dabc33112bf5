"""What Prometheus is told: numbers against a store whose history is known; and what is told to whom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from codistill.capacity import Node
from codistill.run_dir import RunDir, write_json
from codistill.spec import JobSpec
from jobs.callers import LOCAL, Caller, Scope
from jobs.door import DoorRules
from jobs.figures import nearest_rank
from jobs.job import Reason
from jobs.manager import Manager
from jobs.manager_loop import ManagerLoop
from jobs.routes import build_api
from jobs.routes.backend import Backend
from jobs.status import State
from jobs.store import Store
from jobs.store_terms import Submission
from tests.unit.jobs.fakes import Clock, beat, spec


def scrape(store: Store, storage: Path, token: str | None = None, *asked: str) -> dict[tuple[str, ...], float]:
    """Name and labels' values, in the order of the labels' names, of all samples."""
    rules = DoorRules(needs_token=token is not None)
    app = build_api(Backend(store, storage, lambda: [Node(8.0, 2.0), Node(4.0, 0.0)], rules))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with TestClient(app, "http://127.0.0.1", headers=headers) as http:
        for path in asked:
            http.get(path)
        answer = http.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def run_through(store: Store, clock: Clock, waited_s: float, *codes: str, name: str = "a") -> Any:
    """A job that waits, and whose attempts end for these reasons; the last one fails it."""
    job = store.create(spec(name=name))
    clock.now += waited_s
    job = store.move(job, State.ADMITTED)
    for fence, code in enumerate(codes, start=1):
        job = store.move(job, State.STARTING, fence=fence)
        to = State.FAILED if fence == len(codes) else State.RECOVERING
        job = store.move(job, to, reason=Reason(code, "m"))
    return job


def test_every_figure_by_hand(store: Store, clock: Clock, tmp_path: Path) -> None:
    run_through(store, clock, 500.0, "driver_lost")
    clock.now += 4000.0  # its time in the queue is too long ago to count
    run_through(store, clock, 10.0, "driver_lost", "no_luck")
    run_through(store, clock, 20.0, "driver_lost", "driver_lost", "no_luck")
    done = run_through(store, clock, 40.0)
    store.move(store.move(done, State.STARTING, fence=1), State.SUCCEEDED)
    running = store.move(run_through(store, clock, 60.0, name="r"), State.STARTING, fence=1)
    running = store.move(running, State.RUNNING)
    write_json(
        RunDir(tmp_path, running.id).heartbeat(1, "replica-0"),
        beat(0, 1, step=7, now=clock.now - 3) | {"bytes_sent": 11, "bytes_received": 13},
    )
    write_json(
        RunDir(tmp_path, running.id).heartbeat(1, "replica-1"),
        beat(1, 1, step=10, now=clock.now - 300) | {"state": "ended"},
    )
    store.create(JobSpec())
    clock.now += 5.0
    store.submit(Submission(JobSpec(), Caller("bob", Scope.WRITE)))
    store.move(store.create(JobSpec()), State.CANCELLED)
    clock.now += 2.0
    fence = store.lease.acquire("m", 5.0)
    assert fence is not None
    store.lease.note_round(fence)
    clock.now += 1.0
    found = scrape(store, tmp_path)
    by_state = {name[1]: int(value) for name, value in found.items() if name[0] == "codistill_jobs" and value}
    assert by_state == {"FAILED": 3, "SUCCEEDED": 1, "RUNNING": 1, "QUEUED": 2, "CANCELLED": 1}
    assert ("codistill_jobs", "STARTING") in found
    assert found["codistill_queue_depth", "local"] == found["codistill_queue_depth", "bob"] == 1
    assert found["codistill_queue_oldest_seconds",] == 8.0
    assert found["codistill_queue_wait_seconds", "0.5"] == 20.0
    assert found["codistill_queue_wait_seconds", "0.95"] == 60.0
    causes = {name[1]: value for name, value in found.items() if name[0] == "codistill_attempts_ended"}
    assert causes == {"driver_lost": 4, "no_luck": 2, "none": 1}, "what was cancelled while it waited had no attempt"
    assert found["codistill_manager_lease_held",] == 1
    assert found["codistill_manager_fence",] == fence
    assert found["codistill_manager_round_age_seconds",] == 1.0
    assert found["codistill_cluster_nodes",] == 2
    assert found["codistill_cluster_cpus", "total"] == 12.0
    assert found["codistill_cluster_gpus", "total"] == 2.0
    assert found["codistill_cluster_cpus", "reserved"] == running.ranks * running.cpus > 0
    who = (running.id, "replica-0")
    assert found["codistill_replica_step", *who] == 7
    assert found["codistill_replica_heartbeat_age_seconds", *who] == 11.0
    early = (running.id, "replica-1")
    assert found["codistill_replica_step", *early] == 10
    assert ("codistill_replica_heartbeat_age_seconds", *early) not in found, "it is done, and not silent"
    assert found["codistill_replica_sent_bytes", *who] == 11
    assert found["codistill_replica_received_bytes", *who] == 13
    assert found["codistill_replica_teacher_offset_steps", *who, "replica-1"] == 1
    store.move(running, State.SUCCEEDED)
    clock.now += 60.0
    found = scrape(store, tmp_path)
    assert not [name for name in found if running.id in name], "no id of a job that has ended"
    assert found["codistill_manager_lease_held",] == 0


def test_a_new_store_has_figures_too(store: Store, tmp_path: Path) -> None:
    found = scrape(store, tmp_path)
    assert found["codistill_jobs", "QUEUED"] == 0
    assert found["codistill_queue_oldest_seconds",] == 0
    assert not [name for name in found if name[0] in ("codistill_queue_wait_seconds", "codistill_attempts_ended")]
    assert ("codistill_manager_round_age_seconds",) not in found, "there has been no round yet"


def test_a_tenant_is_told_of_no_other(store: Store, tmp_path: Path) -> None:
    for owner in ("ann", "bob"):
        store.submit(Submission(JobSpec(), Caller(owner, Scope.WRITE)))
        job = store.submit(Submission(JobSpec(name=f"of-{owner}"), Caller(owner, Scope.WRITE)))
        job = store.move(store.move(store.move(job, State.ADMITTED), State.STARTING, fence=1), State.RUNNING)
        write_json(RunDir(tmp_path, job.id).heartbeat(1, "replica-0"), beat(0, 1))
    tokens = {
        owner: store.accounts.create(owner, scope, lifetime_s=None, by=LOCAL)[1]
        for owner, scope in (("ann", Scope.READ), ("root", Scope.ADMIN))
    }

    def told(owner: str) -> set[str]:
        found = scrape(store, tmp_path, tokens[owner])
        assert found["codistill_jobs", "RUNNING"] == 2
        owners = {name[1] for name in found if name[0] == "codistill_queue_depth"}
        return owners | {name[1][:6] for name in found if name[0] == "codistill_replica_step"}

    assert told("ann") == {"ann", "of-ann"}
    assert told("root") == {"ann", "bob", "of-ann", "of-bob"}


def test_requests_are_told_by_route_and_never_by_what_somebody_made_up(store: Store, tmp_path: Path) -> None:
    asked = ("/healthz", "/api/v1/jobs/a-aaaaaa", "/api/v1/jobs/b-aaaaaa", "/made/up", "/made/up/2")
    found = scrape(store, tmp_path, None, *asked)
    counts = {name[1:]: value for name, value in found.items() if name[0].endswith("duration_seconds_count")}
    assert counts == {
        ("GET", "/healthz", "2xx"): 1,
        ("GET", "/api/v1/jobs/{job_id}", "4xx"): 2,
        ("GET", "none", "4xx"): 2,
    }


@pytest.mark.parametrize(
    ("values", "quantile", "expected"),
    [
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([1.0, 2.0], 0.5, 1.0),
        ([5.0], 0.95, 5.0),
        ([*map(float, range(1, 21))], 0.95, 19.0),
    ],
)
def test_nearest_rank(values: Sequence[float], quantile: float, expected: float) -> None:
    assert nearest_rank(values, quantile) == expected


def test_a_manager_notes_its_rounds(store: Store, clock: Clock, tmp_path: Path) -> None:
    from tests.unit.jobs.fakes import FakeRunner

    loop = ManagerLoop(store, Manager(store, FakeRunner(tmp_path), tmp_path, list))
    loop.start()
    try:
        for _ in range(100):
            if store.facts(None).round_age_s is not None:
                break
            loop._closed.wait(0.05)
    finally:
        loop.close()
    assert store.facts(None).round_age_s == 0.0
    held = store.lease.acquire("other", 5.0)
    assert held is not None
    clock.now += 3.0
    before = store.facts(None)
    assert before.round_age_s == 3.0
    store.lease.note_round(held - 1)
    assert store.facts(None) == before
