"""Hours that jobs have reserved, against numbers worked out by hand; on SQLite and on PostgreSQL."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from codistill.capacity import Node
from jobs.callers import LOCAL, Caller, Scope
from jobs.deadlines import LAST, end_by, start_by
from jobs.door import DoorRules
from jobs.job import Job
from jobs.routes import build_api
from jobs.routes.backend import Backend
from jobs.status import State
from jobs.store import Store
from jobs.store_terms import Submission
from jobs.usage import Usage, usage_of
from tests.unit.jobs.fakes import Clock, spec

ANN, BOB = (Caller(name, Scope.WRITE) for name in ("ann", "bob"))


def reserve(store: Store, clock: Clock, by: Caller, ranks: int, cpus: float, gpus: float, for_s: float | None) -> Job:
    """A job that waits 50 s in all, then holds its reservation so long; None: for ever."""
    replicas = {"count": ranks, "cpus": cpus, "gpus": gpus}
    job = store.submit(Submission(spec(replicas=replicas), by))
    clock.now += 40.0
    job = store.move(job, State.ADMITTED)
    clock.now += 10.0
    job = store.move(job, State.STARTING, fence=1)
    if for_s is None:
        return job
    clock.now += for_s / 2
    job = store.move(job, State.RECOVERING)
    clock.now += for_s / 4
    job = store.move(job, State.STARTING, fence=2)
    clock.now += for_s / 4
    return store.move(job, State.FAILED)


def test_sums_by_hand(store: Store, clock: Clock) -> None:
    reserve(store, clock, ANN, 2, 1.5, 0.0, 3600.0)  # 2 x 1.5 CPUs for an hour, over two attempts: 3 CPU-hours
    second = clock.now
    reserve(store, clock, ANN, 3, 2.0, 0.5, 1800.0)  # 3 CPU-hours and 0.75 GPU-hours
    third = clock.now
    going = reserve(store, clock, BOB, 4, 1.0, 1.0, None)
    store.submit(Submission(spec(), BOB))  # waits: it has reserved nothing
    clock.now += 900.0  # 1 CPU-hour and 1 GPU-hour until now
    assert store.usage(None) == [Usage("ann", 2, 21_600.0, 2_700.0), Usage("bob", 1, 3_600.0, 3_600.0)]
    assert store.usage("bob") == [Usage("bob", 1, 3_600.0, 3_600.0)]
    assert store.usage("nobody") == []
    assert store.usage("ann", created_from=second) == [Usage("ann", 1, 10_800.0, 2_700.0)]
    assert store.usage(None, created_before=second) == [Usage("ann", 1, 10_800.0, 0.0)]
    assert store.usage(None, created_from=second, created_before=third) == [Usage("ann", 1, 10_800.0, 2_700.0)]
    assert usage_of(going, clock.now) == {"cpu_hours": 1.0, "gpu_hours": 1.0}
    clock.now += 900.0
    assert store.usage("bob") == [Usage("bob", 1, 7_200.0, 7_200.0)]


def test_what_a_deleted_job_has_reserved_stays(store: Store, clock: Clock) -> None:
    job = reserve(store, clock, ANN, 2, 1.0, 0.0, 3600.0)
    never = store.move(store.submit(Submission(spec(), ANN)), State.CANCELLED)
    before = store.usage(None)
    assert before == [Usage("ann", 1, 7_200.0, 0.0)]
    clock.now += 1000.0
    for one in (job, never):
        store.delete(one, by=ANN)
    assert store.page(limit=9) == []
    assert store.usage(None) == before
    assert store.usage(None, created_from=job.created_at) == before
    assert store.usage(None, created_from=job.created_at + 1.0) == []
    reserve(store, clock, ANN, 2, 1.0, 0.0, 3600.0)
    assert store.usage("ann") == [Usage("ann", 2, 14_400.0, 0.0)]


def test_a_clock_that_goes_back_takes_nothing_away(store: Store, clock: Clock) -> None:
    job = reserve(store, clock, ANN, 2, 1.0, 0.0, None)
    clock.now -= 100.0
    assert store.usage(None) == [Usage("ann", 1, 0.0, 0.0)]
    assert usage_of(job, clock.now) == {"cpu_hours": 0.0, "gpu_hours": 0.0}


def test_whoever_asks_sees_their_own_alone(store: Store, clock: Clock, tmp_path: Path) -> None:
    job = reserve(store, clock, ANN, 2, 1.0, 0.0, 3600.0)
    reserve(store, clock, BOB, 2, 1.0, 0.25, 7200.0)
    app = build_api(Backend(store, tmp_path, lambda: [Node(8.0, 8.0)], DoorRules(needs_token=True)))
    tokens = {
        name: store.accounts.create(name, scope, lifetime_s=None, by=LOCAL)[1]
        for name, scope in (("ann", Scope.READ), ("root", Scope.ADMIN))
    }
    ann = {"owner": "ann", "jobs": 1, "cpu_hours": 2.0, "gpu_hours": 0.0, "stored_bytes": 0}
    bob = {"owner": "bob", "jobs": 1, "cpu_hours": 4.0, "gpu_hours": 1.0, "stored_bytes": 0}
    with TestClient(app, "http://127.0.0.1") as http:

        def ask(who: str, path: str = "/api/v1/usage", **params: str) -> object:
            answer = http.get(path, params=params, headers={"Authorization": f"Bearer {tokens[who]}"})
            assert answer.status_code == 200, answer.text
            return answer.json() if path != "/metrics" else answer.text

        assert ask("ann") == ask("ann", owner="bob") == {"items": [ann], "as_of": "1970-01-01T05:48:20.000Z"}
        assert ask("root")["items"] == [ann, bob]  # type: ignore[index]
        assert ask("root", owner="bob")["items"] == [bob]  # type: ignore[index]
        assert ask("root", created_from="1970-01-01T03:00:00Z")["items"] == [bob]  # type: ignore[index]
        shown = ask("ann", f"/api/v1/jobs/{job.id}")
        assert shown["usage"] == {"cpu_hours": 2.0, "gpu_hours": 0.0}  # type: ignore[index]
        samples = {
            (sample.name, sample.labels.get("owner")): sample.value
            for family in text_string_to_metric_families(str(ask("root", "/metrics")))
            for sample in family.samples
        }
        assert samples["codistill_reserved_cpu_seconds_total", "ann"] == 7_200.0
        assert samples["codistill_reserved_gpu_seconds_total", "bob"] == 3_600.0
        assert 'owner="bob"' not in str(ask("ann", "/metrics"))


# ---------------------------------------------------------------- deadlines


def test_deadlines_by_hand(store: Store, clock: Clock, tmp_path: Path) -> None:
    backend = Backend(store, tmp_path, lambda: [Node(8.0, 8.0)])
    job = store.create(spec(limits={"start_deadline_s": 300.0, "max_runtime_s": 3600.0}))
    seen = [backend.show(job)["deadlines"]]
    for to, fence in (
        (State.ADMITTED, None), (State.STARTING, 1), (State.RUNNING, None), (State.RECOVERING, None),
        (State.STARTING, 2), (State.CANCELLING, None), (State.CANCELLED, None),
    ):  # fmt: skip
        clock.now += 100.0
        job = store.move(job, to, fence=fence)
        seen.append(backend.show(job)["deadlines"])
    end = "1970-01-01T03:50:00.000Z"  # 10,200 s, when the first attempt began, and an hour
    none = {"start_by": None, "end_by": None}
    assert seen == [
        none,
        none,
        {"start_by": "1970-01-01T02:55:00.000Z", "end_by": end},  # 10,200 s + 300 s
        {"start_by": None, "end_by": end},
        {"start_by": None, "end_by": end},
        {"start_by": "1970-01-01T03:00:00.000Z", "end_by": end},  # 10,500 s + 300 s
        none,
        none,
    ]


def test_whoever_may_wait_beyond_all_dates_need_not(store: Store) -> None:
    job = store.create(spec(limits={"start_deadline_s": 1e300}))
    job = store.move(store.move(job, State.ADMITTED), State.STARTING, fence=1)
    assert start_by(job, job.spec.limits) is None
    assert end_by(job, job.spec.limits) == 96_400.0
    assert LAST == 253_402_300_799.0
