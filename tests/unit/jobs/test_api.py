"""The routes over a real store and real run directories."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import anyio.to_thread
import pytest
from starlette.testclient import TestClient

from codistill.capacity import Node
from codistill.records import LEDGER, METRICS, Recorder
from codistill.run_dir import RunDir, write_json
from codistill.spec import JobSpec, Method
from codistill.spec_errors import MAX_SPEC_BYTES
from jobs.database import Database
from jobs.job import Reason
from jobs.routes import build_api, facts
from jobs.routes.backend import Backend, EventTimes
from jobs.rows import MAX_ROWS
from jobs.status import State
from jobs.store import Store
from tests.stores import new_store, sqlite_store
from tests.unit.jobs.fakes import beat, result

PAIR = {"name": "pair", "training": {"steps": 10}}
JSON = {"Content-Type": "application/json"}


class Service:
    def __init__(self, root: Path, store_url: str | None = None) -> None:
        self.storage = root / "runs"
        self.storage.mkdir()
        self.store = Store.open(store_url or new_store(root))
        self.nodes = [Node(2.0, 0.0)]
        app = build_api(Backend(self.store, self.storage, lambda: self.nodes))
        self.http = TestClient(app, "http://127.0.0.1", raise_server_exceptions=False)

    def submit(self, **change: Any) -> str:
        answer = self.http.post("/api/v1/jobs", json={**PAIR, **change})
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def move(self, job_id: str, *states: State, **values: Any) -> None:
        for state in states:
            job = self.store.get(job_id)
            assert job is not None
            self.store.move(job, state, **values, **({"fence": job.fence + 1} if state is State.STARTING else {}))

    def run(self, job_id: str) -> RunDir:
        """The job's directory, once its first attempt has begun."""
        self.move(job_id, State.ADMITTED, State.STARTING)
        run = RunDir(self.storage, job_id)
        job = self.store.get(job_id)
        assert job is not None
        run.create(job.spec)
        run.start_attempt(1, time.time())
        return run

    def get(self, path: str, **parameters: Any) -> Any:
        answer = self.http.get(f"/api/v1/jobs{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    with service.http:
        yield service
    service.store.close()


def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    """`answer` if it is the problem it should be, and no more than a sentence."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    value = answer.json()
    assert (value["status"], value["code"]) == (status, code)
    assert "Traceback" not in answer.text
    assert value["detail"]
    return value


# ---------------------------------------------------------------- submit


def test_submit_answers_after_the_commit(service: Service) -> None:
    answer = service.http.post("/api/v1/jobs", json=PAIR)
    assert answer.status_code == 202
    value = answer.json()
    assert answer.headers["location"] == f"/api/v1/jobs/{value['id']}"
    assert value["status"]["state"] == "QUEUED"
    assert value["spec"]["training"]["steps"] == 10
    assert value["spec"]["exchange"]["mode"] == "async"  # defaults are filled in
    assert service.store.get(value["id"]) is not None
    assert service.get(f"/{value['id']}")["created_at"].endswith("Z")
    assert list(service.storage.iterdir()) == []  # the manager writes, not the request


@pytest.mark.parametrize(
    ("body", "path", "says"),
    [
        ('{"training": {"stepz": 3}}', "training.stepz", "did you mean 'steps'"),
        ('{"training": {"steps": "many"}}', "training.steps", "valid integer"),
        ('{"method": {"kind": "sollo"}}', "method.kind", "did you mean 'solo'"),
        ('{"replicas": {"count": 1}}', "", "needs at least 2 replicas"),
        ('{"name": "../../etc"}', "name", "pattern"),
        ('{"exchange": {"transport": {"kind": "memory"}}}', "exchange.transport.kind", "auto, files, object_store"),
        ("{", "", "Invalid JSON"),
        ("", "", "Invalid JSON"),
        ("[]", "", "should be an object"),
        ("\xff\xfe", "", "Invalid JSON"),
        ('{"training": {"optimizer": {"kind": "sgd", "learning_rate": NaN}}}', "", ""),
        ('{"training": {"steps": 1e999}}', "training.steps", ""),
        ("[" * 100_000, "", ""),
    ],
)
def test_bad_specs_are_422_and_name_the_key(service: Service, body: str, path: str, says: str) -> None:
    answer = service.http.post("/api/v1/jobs", content=body.encode("latin-1"), headers=JSON)
    value = problem(answer, 422, "bad_spec")
    assert value["errors"][0]["path"].endswith(path)
    assert says in value["errors"][0]["message"]
    assert service.store.page(limit=1) == []


def test_errors_list_what_is_allowed(service: Service) -> None:
    value = problem(service.http.post("/api/v1/jobs", json={"method": {"kind": "none"}}), 422, "bad_spec")
    allowed = value["errors"][0]["allowed"]
    assert allowed == [choice.model_fields["kind"].default for choice in get_args(get_args(Method)[0])]
    assert {"solo", "codistillation", "diloco"} <= set(allowed)


def test_a_job_that_can_never_fit_is_refused_with_what_is_short(service: Service) -> None:
    answer = service.http.post("/api/v1/jobs", json={"replicas": {"count": 4}})
    value = problem(answer, 422, "never_fits")
    assert "the job needs 4 CPUs" in value["detail"]
    assert "the cluster has 2" in value["detail"]


def test_a_body_over_the_limit_is_refused_while_it_streams(service: Service) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(4096):
            sent += 1
            yield b" " * 65536

    problem(service.http.post("/api/v1/jobs", content=chunks(), headers=JSON), 413, "body_too_large")
    big = json.dumps({"name": "x", "pad": "y" * MAX_SPEC_BYTES})
    problem(service.http.post("/api/v1/jobs", content=big, headers=JSON), 413, "body_too_large")


def test_storage_that_is_missing_or_full_is_503(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunDir, "free_bytes", lambda _self: 1000)
    value = problem(service.http.post("/api/v1/jobs", json=PAIR), 503, "storage_unavailable")
    assert "is full" in value["detail"]
    service.storage.rmdir()
    value = problem(service.http.post("/api/v1/jobs", json=PAIR), 503, "storage_unavailable")
    assert "does not exist; create it" in value["detail"]
    assert service.store.page(limit=1) == []


def test_a_broken_store_is_503(tmp_path: Path) -> None:
    service = Service(tmp_path, sqlite_store(tmp_path))
    service.store.close()
    (tmp_path / "jobs.db").write_bytes(b"no database " * 1000)
    for name in ("jobs.db-wal", "jobs.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    problem(service.http.get("/api/v1/jobs"), 503, "store_unavailable")


def test_an_unexpected_error_is_500_without_its_text(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret words")

    monkeypatch.setattr(Store, "page", fail)
    assert "secret" not in json.dumps(problem(service.http.get("/api/v1/jobs"), 500, "internal"))


# ---------------------------------------------------------------- list and show


def test_list_pages_and_filters(service: Service) -> None:
    ids = [service.submit() for _ in range(3)]
    service.http.post(f"/api/v1/jobs/{ids[1]}/cancel")
    page = service.get("", limit=2)
    assert [item["id"] for item in page["items"]] == [ids[2], ids[1]]
    rest = service.get("", limit=2, cursor=page["next_cursor"])
    assert [item["id"] for item in rest["items"]] == [ids[0]]
    assert rest["next_cursor"] is None
    assert [item["id"] for item in service.get("", state="CANCELLED")["items"]] == [ids[1]]


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=501", "cursor=-1", "state=LOST"])
def test_bad_parameters_are_422(service: Service, query: str) -> None:
    value = problem(service.http.get(f"/api/v1/jobs?{query}"), 422, "bad_parameter")
    assert value["errors"][0]["path"] == f"query.{query.partition('=')[0]}"


BAD_IDS = ["nobody-aaaaaa", "UPPER", "a" * 64, "..", "%2e%2e%2fetc", "a%00b", "a%0a", "é", "a b", "-a"]


@pytest.mark.parametrize("job_id", BAD_IDS)
@pytest.mark.parametrize("rest", ["", "/logs", "/metrics", "/ledger"])
def test_unknown_and_malformed_ids_are_404(service: Service, job_id: str, rest: str) -> None:
    answer = service.http.get(f"/api/v1/jobs/{job_id}{rest}")
    assert answer.status_code in {404, 200 if job_id == ".." else 404}  # a client folds `..` into a known route
    if job_id != "..":
        assert answer.json()["code"] in {"no_such_job", "no_such_route"}


def test_unknown_routes_and_methods_are_problems(service: Service) -> None:
    problem(service.http.get("/nowhere"), 404, "no_such_route")
    problem(service.http.delete("/api/v1/jobs"), 405, "method_not_allowed")


def test_show_has_replicas_progress_and_transitions(service: Service) -> None:
    job_id = service.submit()
    run = service.run(job_id)
    path = run.heartbeat(1, "replica-0")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(beat(0, now=time.time() - 3) | {"loss": math.nan}))  # JSON has no NaN, Python's has
    status = service.get(f"/{job_id}")["status"]
    first, second = status["replicas"]
    assert (first["step"], first["steps"], first["loss"], first["pid"], first["node"]) == (5, 10, None, 4242, "here")
    assert first["teachers"][0]["version"] == 4
    assert 3 <= first["seconds_since_beat"] < 10
    assert (second["replica"], second["step"]) == ("replica-1", None)
    assert status["progress"] == {"phase": "distill", "completed": 5, "total": 20, "unit": "steps"}
    assert [t["state"] for t in status["transitions"]] == ["QUEUED", "ADMITTED", "STARTING"]
    cancelled = service.http.post(f"/api/v1/jobs/{job_id}/cancel")
    assert cancelled.json()["status"]["replicas"][0]["loss"] is None


def test_control_arms_are_replicas_like_others(service: Service) -> None:
    job_id = service.submit(controls=["smoothing", "solo"])
    run = service.run(job_id)
    for index, step in enumerate((10, 10)):
        write_json(run.heartbeat(1, f"replica-{index}"), beat(index, step=step))
    write_json(run.heartbeat(1, "smoothing-1"), beat(1, step=4) | {"replica": "smoothing-1"})
    status = service.get(f"/{job_id}")["status"]
    names = [replica["replica"] for replica in status["replicas"]]
    assert names == ["replica-0", "replica-1", "smoothing-0", "smoothing-1", "solo-0", "solo-1"]
    assert [replica["step"] for replica in status["replicas"]] == [10, 10, None, 4, None, None]
    assert (status["progress"]["completed"], status["progress"]["total"]) == (24, 60)
    assert service.get(f"/{job_id}/metrics", replica="solo-1")["items"] == []
    answer = service.http.get(f"/api/v1/jobs/{job_id}/ledger", params={"replica": "solo-2"})
    assert "it has replica-0, replica-1, smoothing-0" in problem(answer, 404, "no_such_replica")["detail"]


def test_only_the_current_fence_is_shown(service: Service) -> None:
    job_id = service.submit()
    run = service.run(job_id)
    write_json(run.heartbeat(1, "replica-0"), beat(0))
    write_json(run.result(1), result(job_id, 1, "failed"))
    service.move(job_id, State.RECOVERING, State.STARTING)
    shown = service.get(f"/{job_id}")
    assert shown["result"] is None
    assert shown["status"]["replicas"][0]["step"] is None
    write_json(run.result(2), result(job_id, 2, "succeeded") | {"degraded": True})
    shown = service.get(f"/{job_id}")
    assert (shown["result"]["fence"], shown["status"]["degraded"]) == (2, True)


# ---------------------------------------------------------------- cancel


def test_a_request_that_reads_or_writes_changes_threads_once(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the disk that its route waits for. Each change costs time on the processors that jobs train on."""
    job_id, changes = service.submit(), list[Any]()
    run_sync = anyio.to_thread.run_sync

    async def counted(function: Any, *arguments: Any, **options: Any) -> Any:
        changes.append(function)
        return await run_sync(function, *arguments, **options)

    monkeypatch.setattr(anyio.to_thread, "run_sync", counted)
    assert service.http.get(f"/api/v1/jobs/{job_id}").status_code == 200
    assert len(changes) == 1
    assert service.http.post(f"/api/v1/jobs/{job_id}/cancel").status_code == 202
    assert len(changes) == 2


def test_nothing_that_takes_a_while_is_done_in_the_event_loop(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By any route: where the cluster, the store or a run directory hangs, the others are still answered."""
    called: dict[str, list[bool]] = {}

    def watched(name: str, function: Any) -> Any:
        def watching(*arguments: Any, **options: Any) -> Any:
            try:
                asyncio.get_running_loop()
                called.setdefault(name, []).append(True)
            except RuntimeError:
                called.setdefault(name, []).append(False)
            return function(*arguments, **options)

        return watching

    job_id = service.submit()
    service.run(job_id)
    service.move(job_id, State.RUNNING, State.SUCCEEDED)
    nodes, look_once = watched("nodes", lambda: service.nodes), EventTimes(poll_s=0.0, stream_s=0.0)
    app = build_api(Backend(service.store, service.storage, nodes, events=look_once, data_home=service.storage))
    routes = [(method, path) for path, item in app.openapi()["paths"].items() for method in item]
    for owner, name in ((Database, "transaction"), (RunDir, "read_heartbeats"), (JobSpec, "model_json_schema")):
        monkeypatch.setattr(owner, name, watched(name, getattr(owner, name)))
    facts._schema.cache_clear()
    with TestClient(app, "http://127.0.0.1", raise_server_exceptions=False) as http:
        for method, path in sorted(routes, key=lambda route: route[0] == "delete"):
            body = PAIR if path.startswith("/api/v1/jobs") and "{job_id}" not in path else {}
            http.request(method, path.replace("{job_id}", job_id), json=None if method == "get" else body)
    assert {name: any(in_the_loop) for name, in_the_loop in called.items()} == dict.fromkeys(
        ("nodes", "transaction", "read_heartbeats", "model_json_schema"), False
    )


def test_cancel_in_the_queue_is_final_at_once(service: Service) -> None:
    job_id = service.submit()
    for _ in range(2):  # idempotent
        answer = service.http.post(f"/api/v1/jobs/{job_id}/cancel")
        assert answer.status_code == 202
        assert answer.json()["status"]["state"] == "CANCELLED"
    assert len(service.store.transitions(job_id)) == 2


def test_cancel_of_a_running_job_is_left_to_the_manager(service: Service) -> None:
    job_id = service.submit()
    service.move(job_id, State.ADMITTED, State.STARTING, State.RUNNING)
    for _ in range(2):
        answer = service.http.post(f"/api/v1/jobs/{job_id}/cancel")
        assert (answer.status_code, answer.json()["status"]["state"]) == (202, "CANCELLING")
    assert len(service.store.transitions(job_id)) == 5


def test_cancel_after_the_end_changes_nothing(service: Service) -> None:
    job_id = service.submit()
    service.move(job_id, State.FAILED, reason=Reason("storage", "gone"))
    answer = service.http.post(f"/api/v1/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()["status"]["state"]) == (202, "FAILED")
    assert answer.json()["status"]["reason"]["code"] == "storage"


def test_cancel_of_nobody_is_404(service: Service) -> None:
    problem(service.http.post("/api/v1/jobs/nobody-aaaaaa/cancel"), 404, "no_such_job")


# ---------------------------------------------------------------- logs, metrics, ledger


def test_logs_join_attempts_and_incarnations_in_order(service: Service) -> None:
    job_id = service.submit()
    run = service.run(job_id)
    run.start_attempt(2, time.time())
    for fence, incarnation, text in ((1, 0, "a\n"), (1, 2, "b\n"), (1, 10, "c\n"), (2, 0, "d\né")):
        path = run.logs(fence, "replica-0") / f"{incarnation}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    run.attempt(2).joinpath("driver.log").write_text("driving\n")
    url = f"/api/v1/jobs/{job_id}/logs"
    whole = service.http.get(url)
    assert whole.text == "a\nb\nc\nd\né"
    assert whole.headers["content-type"].startswith("text/plain")
    assert whole.headers["codistill-next-offset"] == "10"
    assert service.http.get(url, params={"tail": 2}).text == "d\né"
    assert service.http.get(url, params={"tail": 0}).text == ""
    assert service.http.get(url, params={"offset": 4}).text == "c\nd\né"
    assert service.http.get(url, params={"offset": 99}).text == ""
    assert service.http.get(url, params={"replica": "driver"}).text == "driving\n"


def test_logs_exist_in_every_state(service: Service) -> None:
    job_id = service.submit()
    for replica in ("replica-0", "replica-1", "driver"):
        answer = service.http.get(f"/api/v1/jobs/{job_id}/logs", params={"replica": replica})
        assert (answer.status_code, answer.text) == (200, "")
    service.http.post(f"/api/v1/jobs/{job_id}/cancel")
    assert service.http.get(f"/api/v1/jobs/{job_id}/logs").status_code == 200


@pytest.mark.parametrize("replica", ["replica-2", "..", "../../../etc", "", "Driver"])
@pytest.mark.parametrize("what", ["logs", "metrics", "ledger"])
def test_an_unknown_replica_is_404_and_the_known_are_named(service: Service, replica: str, what: str) -> None:
    job_id = service.submit()
    answer = service.http.get(f"/api/v1/jobs/{job_id}/{what}", params={"replica": replica})
    value = problem(answer, 404, "no_such_replica")
    assert value["errors"][0]["allowed"][:2] == ["replica-0", "replica-1"]


def test_metrics_come_once_per_step_and_name(service: Service) -> None:
    job_id = service.submit()
    run = service.run(job_id)
    for fence, steps in ((1, (1, 2, 3)), (2, (3, 4))):
        if fence == 2:
            run.start_attempt(2, time.time())
        recorder = Recorder(run.replica(fence, "replica-0") / "metrics", METRICS, fence=fence, incarnation=0)
        for step in steps:
            recorder.add_values(step, {"train/task_loss": step + fence / 10, "eval/accuracy": math.nan})
        recorder.flush()
    rows = service.get(f"/{job_id}/metrics", names="train/task_loss")["items"]
    assert [(row["step"], row["fence"], round(row["value"], 1)) for row in rows] == [
        (1, 1, 1.1), (2, 1, 2.1), (3, 2, 3.2), (4, 2, 4.2),
    ]  # fmt: skip
    assert rows[0]["time"].endswith("Z")
    later = service.get(f"/{job_id}/metrics", after_step=3)["items"]
    assert {(row["step"], row["name"], row["value"]) for row in later} == {
        (4, "train/task_loss", 4.2), (4, "eval/accuracy", None),
    }  # fmt: skip
    assert service.get(f"/{job_id}/metrics", names="no/such")["items"] == []
    nothing = service.get(f"/{job_id}/metrics", replica="replica-1")
    assert nothing == {"items": [], "next_after_step": None, "thinned": None}


def test_many_rows_come_in_whole_steps(service: Service) -> None:
    job_id = service.submit()
    run = service.run(job_id)
    recorder = Recorder(run.replica(1, "replica-0") / "metrics", METRICS, fence=1, incarnation=0, flush_interval_s=99)
    steps = MAX_ROWS // 2 + 100
    for step in range(steps):
        recorder.add_values(step, {"a": 1.0, "b": 2.0, "c": 3.0})
    recorder.flush()
    seen: list[tuple[int, str]] = []
    after: int | None = -1
    while after is not None:
        page = service.get(f"/{job_id}/metrics", after_step=after)
        assert len(page["items"]) <= MAX_ROWS
        seen += [(row["step"], row["name"]) for row in page["items"]]
        after = page["next_after_step"]
    assert sorted(seen) == [(step, name) for step in range(steps) for name in "abc"]


def test_the_ledger_says_who_taught_and_how_stale(service: Service) -> None:
    job_id = service.submit()
    run = service.run(job_id)
    recorder = Recorder(run.replica(1, "replica-0") / "ledger", LEDGER, fence=1, incarnation=0)
    row = {
        "teacher": "replica-1", "teacher_fence": 1, "teacher_incarnation": 0, "version": 4,
        "lag_steps": None, "offset_steps": 2, "bytes_received": 100, "verdict": "accepted",
    }  # fmt: skip
    recorder.add(6, **row)
    recorder.flush()
    (found,) = service.get(f"/{job_id}/ledger", after_step=5)["items"]
    assert found == {"step": 6, "fence": 1, "incarnation": 0, **row}


# ---------------------------------------------------------------- health


def test_health_readiness_and_version(service: Service) -> None:
    assert service.http.get("/healthz").json() == {"status": "ok"}
    assert service.http.get("/version").json()["api"] == "v1"
    problem(service.http.get("/readyz"), 503, "no_manager")
    service.store.lease.acquire("m", 60.0)
    assert service.http.get("/readyz").json() == {"status": "ready"}
    service.nodes.clear()
    problem(service.http.get("/readyz"), 503, "no_nodes")
