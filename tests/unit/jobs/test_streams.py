"""Logs that are followed, and tables as Arrow streams, over the real routes and through the clients."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from codistill.records import METRICS, Recorder
from codistill.run_dir import RunDir
from jobs import patience, wire
from jobs.async_client import AsyncClient
from jobs.client import Client, ServiceRefused, ServiceUnreachable
from jobs.logs import read_log
from jobs.media import ARROW
from jobs.routes import build_api
from jobs.routes.backend import Backend, EventTimes
from jobs.routes.log_stream import followed
from jobs.status import State
from tests.unit.jobs.test_api import Service, problem


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    look_once = EventTimes(poll_s=0.0, stream_s=0.0)
    app = build_api(Backend(made.store, made.storage, lambda: made.nodes, events=look_once))
    made.http = TestClient(app, "http://127.0.0.1")
    with made.http:
        yield made
    made.store.close()


def log_of(run: RunDir) -> Path:
    path = run.logs(1, "replica-0") / "0.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# ---------------------------------------------------------------- logs


def test_an_answer_that_follows_says_where_it_begins(service: Service) -> None:
    job_id = service.submit()
    log_of(service.run(job_id)).write_bytes(b"one\ntwo\nthr\xc3\xa9e\n")
    url = f"/api/v1/jobs/{job_id}/logs?follow=true"
    whole = service.http.get(url)
    assert (whole.content, whole.headers["codistill-offset"]) == (b"one\ntwo\nthr\xc3\xa9e\n", "0")
    assert whole.headers["content-type"] == "text/plain; charset=utf-8"
    tail = service.http.get(url + "&tail=1")
    assert (tail.content, tail.headers["codistill-offset"]) == (b"thr\xc3\xa9e\n", "8")
    # The letter is cut in two: nothing of it is lost or made up.
    rest = service.http.get(url + "&offset=12")
    assert (rest.content, rest.headers["codistill-offset"]) == (b"\xa9e\n", "12")
    assert service.http.get(url + "&offset=15").content == b""
    problem(service.http.get(url + "&replica=replica-7"), 404, "no_such_replica")
    problem(service.http.get("/api/v1/jobs/a-aaaaaa/logs?follow=true"), 404, "no_such_job")


class Following:
    """A stream over a job that runs; `looks` says what happens before each look of the service."""

    def __init__(self, service: Service, **times: float) -> None:
        self.service, self.job_id = service, service.submit()
        self.run = service.run(self.job_id)
        self.backend = Backend(service.store, service.storage, lambda: service.nodes, events=EventTimes(**times))
        self.asked = 0

    def read(self, looks: list[Any]) -> list[bytes]:
        async def gone() -> bool:
            self.asked += 1
            return bool(looks and (looks.pop(0) or (lambda: None))())

        async def gather(stream: AsyncIterator[bytes]) -> list[bytes]:
            return [piece async for piece in stream]

        job = self.service.store.get(self.job_id)
        assert job is not None
        first = read_log(self.run, "replica-0")
        return asyncio.run(gather(followed(self.backend, job, "replica-0", first, gone)))

    def write(self, text: bytes) -> None:
        with log_of(self.run).open("ab") as file:
            file.write(text)

    def end(self, text: bytes) -> None:
        self.write(text)
        self.service.move(self.job_id, State.SUCCEEDED)


def test_what_is_added_is_sent_until_the_job_has_ended(service: Service) -> None:
    following = Following(service, poll_s=0.0, stream_s=60.0)
    following.write(b"a")
    looks = [None, lambda: following.write(b"b\n"), None, lambda: following.end(b"last\n")]
    assert following.read(looks) == [b"a", b"b\n", b"last\n"]
    assert following.asked == 5, "a look that found something is followed by another"


def test_what_is_written_between_the_end_and_the_look_is_not_missed(service: Service) -> None:
    following = Following(service, poll_s=0.0, stream_s=60.0)
    get = service.store.get

    def last_words(job_id: str) -> Any:
        job = get(job_id)
        if following.asked == 2:
            service.store.get = get  # type: ignore[method-assign]
            following.end(b"last\n")  # the service has just read that the job goes on
        return job

    first = read_log(following.run, "replica-0")
    service.store.get = last_words  # type: ignore[method-assign]
    assert first.data == b""
    assert following.read([]) == [b"last\n"]


def test_a_listener_who_has_gone_ends_the_stream(service: Service) -> None:
    following = Following(service, poll_s=0.0, stream_s=60.0)
    assert following.read([None, None, lambda: True]) == []
    assert following.asked == 3


def test_a_stream_lasts_no_longer_than_it_may(service: Service) -> None:
    following = Following(service, poll_s=0.01, stream_s=0.05)
    assert following.read([]) == []
    assert 2 <= following.asked <= 7


def test_the_service_notices_that_nobody_listens(service: Service) -> None:
    """With the ASGI protocol itself: the client goes after the answer has begun."""
    job_id = service.submit()
    log_of(service.run(job_id)).write_text("one\n")
    patient = EventTimes(poll_s=0.01, stream_s=60.0)
    app = build_api(Backend(service.store, service.storage, lambda: service.nodes, events=patient))
    sent: list[Any] = []
    asked = 0

    async def receive() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        if asked == 1:
            return {"type": "http.request", "body": b"", "more_body": False}
        while not any(message.get("body") for message in sent):
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "method": "GET", "path": f"/api/v1/jobs/{job_id}/logs",
        "raw_path": b"/", "query_string": b"follow=true", "headers": [(b"host", b"localhost")], "client": ("::1", 5),
        "server": ("localhost", 80), "scheme": "http", "root_path": "", "asgi": {"spec_version": "2.4"},
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 10.0))
    assert b"".join(message.get("body", b"") for message in sent) == b"one\n"


# ---------------------------------------------------------------- what a client makes of it


class Told:
    """A service that answers from a script; an exception in it is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request.url.raw_path.decode())
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx2.Response):
            return answer
        if isinstance(answer, str):
            return httpx2.Response(200, json={"id": "j", "status": {"state": answer, "reason": None}})
        offset, chunks = answer
        return httpx2.Response(200, headers={"Codistill-Offset": str(offset)}, content=chunks)


def broken(*pieces: bytes) -> Iterator[bytes]:
    yield from pieces
    raise httpx2.RemoteProtocolError("the service was started again")


def follow_with_both(monkeypatch: pytest.MonkeyPatch, script: Any, **options: Any) -> tuple[list[str], list[str]]:
    """What was written, and what was asked for; the same by either client."""
    monkeypatch.setattr(wire, "POLL_S", 0.0)
    plain, waiting = Told(*script()), Told(*script())
    written: tuple[list[str], list[str]] = ([], [])
    with Client("http://s") as client:
        client._http.close()
        client._http = httpx2.Client(base_url="http://s", transport=httpx2.MockTransport(plain))
        client.follow_logs("j", written[0].append, **options)

    async def again() -> None:
        async def answer(request: httpx2.Request) -> httpx2.Response:
            found = waiting(request)
            if "logs" not in str(request.url) or found.is_error:
                return found
            pieces = iter(found.stream)  # type: ignore[arg-type]

            async def chunks() -> AsyncIterator[bytes]:
                for piece in pieces:
                    yield piece

            return httpx2.Response(200, headers=found.headers, content=chunks())

        async with AsyncClient("http://s") as other:
            await other._http.aclose()
            other._http = httpx2.AsyncClient(base_url="http://s", transport=httpx2.MockTransport(answer))
            await other.follow_logs("j", written[1].append, **options)

    asyncio.run(again())
    assert "".join(written[0]) == "".join(written[1])
    assert plain.asked == waiting.asked
    return written[0], plain.asked


def test_a_client_comes_back_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def script() -> list[Any]:
        return [
            "RUNNING", (100, iter([b"a\n", b"\xc3"])),  # the stream has lasted long enough
            "RUNNING", (103, broken(b"\xa9\n")),
            "RUNNING", (105, iter([])),
            "SUCCEEDED", (105, iter([b"end\n"])),
        ]  # fmt: skip

    written, asked = follow_with_both(monkeypatch, script, tail=7)
    assert "".join(written) == "a\né\nend\n"
    base = "/api/v1/jobs/j/logs?replica=replica-0&follow=true"
    assert [path for path in asked if "logs" in path] == [
        f"{base}&tail=7", f"{base}&offset=103", f"{base}&offset=105", f"{base}&offset=105",
    ]  # fmt: skip


def test_a_break_at_the_very_end_is_made_good(monkeypatch: pytest.MonkeyPatch) -> None:
    def script() -> list[Any]:
        return ["FAILED", (0, broken(b"la")), "FAILED", (2, iter([b"st\n"]))]

    assert "".join(follow_with_both(monkeypatch, script, replica="driver")[0]) == "last\n"


def test_a_service_that_only_ever_breaks_off_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def script() -> list[Any]:
        return ["RUNNING", httpx2.ConnectError("no")] * 99

    monkeypatch.setattr(patience, "UNANSWERED_S", 0.0)
    with pytest.raises(ServiceUnreachable, match="no service answers"):
        follow_with_both(monkeypatch, script)


def test_a_service_that_is_away_between_two_answers_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def script() -> list[Any]:
        gone, starting = httpx2.ConnectError("no"), httpx2.Response(404, text="Path '/api' not found")
        too_often = httpx2.Response(429, headers={"Retry-After": "0"}, json={"code": "c", "detail": "wait 0 s"})
        return [
            "RUNNING", (0, iter([b"a\n"])),
            gone, gone, starting, "RUNNING", too_often, "RUNNING", gone, "RUNNING", (2, iter([b"b\n"])),
            gone, "SUCCEEDED", starting, "SUCCEEDED", (4, iter([b"end\n"])),
        ]  # fmt: skip

    assert "".join(follow_with_both(monkeypatch, script)[0]) == "a\nb\nend\n"


@pytest.mark.parametrize("first", [httpx2.ConnectError("no"), httpx2.Response(404, text="Path '/api' not found")])
def test_an_address_where_nothing_has_answered_yet_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, first: Exception | httpx2.Response
) -> None:
    with pytest.raises((ServiceUnreachable, ServiceRefused)):
        follow_with_both(monkeypatch, lambda: [first])


# ---------------------------------------------------------------- Arrow


def test_an_arrow_stream_has_the_same_rows(service: Service) -> None:
    job_id = service.submit()
    run = service.run(job_id)
    recorder = Recorder(run.replica(1, "replica-0") / "metrics", METRICS, fence=1, incarnation=0)
    for step in range(1, 101):
        recorder.add_values(step, {"a": float(step), "b": math.nan if step == 7 else -float(step)})
    recorder.flush()
    url = f"/api/v1/jobs/{job_id}/metrics"

    def table(**params: Any) -> pa.Table:
        answer = service.http.get(url, params=params, headers={"Accept": f"{ARROW}, application/json;q=0.5"})
        assert (answer.status_code, answer.headers["content-type"]) == (200, ARROW)
        assert answer.headers["vary"] == "Accept"
        return pa.ipc.open_stream(answer.content).read_all()

    whole = table()
    assert whole.schema.equals(METRICS)
    assert json.loads(whole.schema.metadata[b"thinned"]) is None
    assert whole.schema.metadata[b"schema_version"] == b"1"
    rows = service.get(f"/{job_id}/metrics")["items"]

    def facts(items: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
        return {(r["step"], r["name"], None if r["value"] != r["value"] else r["value"]) for r in items}

    assert facts(whole.to_pylist()) == facts(rows)
    assert len(rows) == whole.num_rows == 200
    late = table(after_step=98, names="a")
    assert late["value"].to_pylist() == [99.0, 100.0]
    thin = table(names="a", max_points=8)
    assert json.loads(thin.schema.metadata[b"thinned"]) == {"rows": 100, "kept": thin.num_rows}
    assert thin.num_rows <= 8
    assert thin["step"].to_pylist() == [
        row["step"] for row in service.get(f"/{job_id}/metrics", names="a", max_points=8)["items"]
    ]
    for accept in ("*/*", "application/json", "", "text/html"):
        answer = service.http.get(url, headers={"Accept": accept})
        assert answer.headers["content-type"] == "application/json"
    problem(service.http.get(url + "?replica=x", headers={"Accept": ARROW}), 404, "no_such_replica")
    ledger = service.http.get(f"/api/v1/jobs/{job_id}/ledger", headers={"Accept": ARROW})
    assert pa.ipc.open_stream(ledger.content).read_all().num_rows == 0


def test_clients_read_tables() -> None:
    made = pa.table({"step": [1, 2], "value": [0.5, 0.25]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made)
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, content=sink.getvalue().to_pybytes())

    with Client("http://s") as client:
        client._http.close()
        client._http = httpx2.Client(base_url="http://s", transport=httpx2.MockTransport(answer))
        assert client.metrics_table("j", names=["a", "b"], after_step=3, max_points=9).equals(made)
        assert client.ledger_table("j", replica="replica-1").equals(made)
    assert [request.url.raw_path.decode() for request in seen] == [
        "/api/v1/jobs/j/metrics?replica=replica-0&names=a%2Cb&after_step=3&max_points=9",
        "/api/v1/jobs/j/ledger?replica=replica-1&after_step=-1",
    ]
    assert {request.headers["accept"] for request in seen} == {ARROW}
