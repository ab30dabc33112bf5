"""What Serve's proxy answers without asking anybody, and what never."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from jobs.kept_answers import KEEP, MOST_ANSWERS, MOST_BYTES, KeptAnswers
from tests.unit.jobs.fakes import Clock
from tests.unit.jobs.test_door import Guarded

FOR_HALF_A_SECOND = {KEEP: "500"}


class Counting:
    """Answers with how often it was asked, in the way a test wants it."""

    def __init__(self) -> None:
        self.asked, self.status, self.headers = 0, 200, FOR_HALF_A_SECOND
        self.begun: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        await self.response(Request(scope))(scope, receive, send)

    def response(self, request: Request) -> Response:
        match request.url.path:
            case "/parts":
                return StreamingResponse(
                    iter([b"one", b"two"]), headers=self.headers, media_type="application/octet-stream"
                )
            case "/events":
                return StreamingResponse(iter([b"one"]), media_type="text/event-stream")
            case "/long":
                return PlainTextResponse("x" * (MOST_BYTES + 1), headers=self.headers)
            case _:
                return PlainTextResponse(str(self.asked), self.status, headers=self.headers)


@pytest.fixture
def app() -> Counting:
    return Counting()


@pytest.fixture
def clock() -> Clock:
    return Clock(100.0)


@pytest.fixture
def http(app: Counting, clock: Clock) -> TestClient:
    return TestClient(KeptAnswers(app, clock))


def test_the_same_question_has_the_same_answer_for_half_a_second(http: TestClient, clock: Clock) -> None:
    first = http.get("/job?part=a")
    clock.now += 0.49
    again = http.get("/job?part=a")
    assert (again.text, again.status_code, dict(again.headers)) == ("1", 200, dict(first.headers))
    assert KEEP not in first.headers, "this is between the service and its proxy"
    clock.now += 0.01
    assert http.get("/job?part=a").text == "2"


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/other", {}),
        ("/job?part=b", {}),
        ("/job", {"Authorization": "Bearer another"}),
        ("/job", {"Accept": "text/html"}),
        ("/job", {"Host": "another"}),
        ("/job", {"Origin": "http://another"}),
    ],
)
def test_another_question_has_its_own(http: TestClient, path: str, headers: dict[str, str]) -> None:
    http.get("/job", headers={"Authorization": "Bearer one"})
    assert http.get(path, headers={"Authorization": "Bearer one", **headers}).text == "2"


@pytest.mark.parametrize("path", ["/parts", "/long"])
def test_what_is_large_or_comes_in_parts_is_passed_on_alone(http: TestClient, app: Counting, path: str) -> None:
    assert http.get(path).content == http.get(path).content
    assert app.asked == 2


@pytest.mark.parametrize("said", ["no-cache", "No-Store", "max-age=0, no-cache"])
def test_who_wants_it_anew_gets_it(http: TestClient, said: str) -> None:
    assert [http.get("/job", headers={"Cache-Control": said}).text for _ in range(2)] == ["1", "2"]


def test_a_stream_may_tell_something_new(http: TestClient) -> None:
    """An event that the job has ended: whoever then asks for the job is not told that it runs."""
    http.get("/job")
    http.get("/parts")
    assert http.get("/job").text == "1", "a download tells nothing"
    http.get("/events")
    assert http.get("/job").text == "4"


@pytest.mark.parametrize(("status", "headers"), [(200, {}), (404, FOR_HALF_A_SECOND), (503, FOR_HALF_A_SECOND)])
def test_neither_errors_nor_what_says_nothing_are_kept(
    http: TestClient, app: Counting, status: int, headers: dict[str, str]
) -> None:
    app.status, app.headers = status, headers
    assert [http.get("/job").text, http.get("/job").text] == ["1", "2"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_a_change_drops_all(http: TestClient, method: str) -> None:
    http.get("/job")
    http.request(method, "/elsewhere")
    assert http.get("/job").text == "3"


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_what_changes_nothing_drops_nothing_and_is_another_question(http: TestClient, method: str) -> None:
    http.get("/job")
    assert KEEP not in http.request(method, "/job").headers
    assert http.get("/job").text == "1"


def test_only_so_many_are_kept(http: TestClient, app: Counting) -> None:
    for number in range(MOST_ANSWERS + 1):
        http.get(f"/job?{number}")
    asked = app.asked
    http.get("/job?1")
    assert app.asked == asked, "the second is the oldest that is kept"
    http.get("/job?0")
    assert app.asked == asked + 1


def test_long_questions_are_not_kept_either(http: TestClient, app: Counting) -> None:
    for headers in ({"X-Long": "x" * MOST_BYTES}, {"X-Long": "x" * (MOST_BYTES - 1000)}):
        for _ in range(2):
            http.get("/job", headers=headers)
    assert app.asked == 3


def test_what_was_asked_for_again_is_among_the_newest(http: TestClient, app: Counting, clock: Clock) -> None:
    for number in range(MOST_ANSWERS):
        http.get(f"/job?{number}")
    clock.now += 0.5
    http.get("/job?0")
    http.get("/job?another")
    asked = app.asked
    http.get("/job?0")
    assert app.asked == asked


def get(path: bytes = b"/job", method: str = "GET") -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path.decode(), "raw_path": path, "query_string": b"",
            "headers": []}  # fmt: skip


def test_what_is_over_is_let_go(app: Counting, clock: Clock) -> None:
    """A token and what it asked for do not stay in memory."""
    layer = KeptAnswers(app, clock)
    http = TestClient(layer)
    http.get("/job")
    clock.now += 0.5
    http.get("/other")
    assert [path for _, path, *_ in layer._kept] == [b"/other"]  # pyright: ignore[reportPrivateUsage]


def test_layers_around_may_change_what_they_are_given(app: Counting, clock: Clock) -> None:
    """As Serve's own do, each time."""
    layer, sent = KeptAnswers(app, clock), list[int]()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"].append((b"x-more", b"1"))
            sent.append(len(message["headers"]))

    async def thrice() -> None:
        for _ in range(3):
            await layer(get(), None, send)  # type: ignore[arg-type]

    asyncio.run(thrice())
    assert len(set(sent)) == 1
    assert app.asked == 1


@pytest.mark.parametrize("cut_off", [False, True])
def test_what_was_read_before_a_change_is_not_kept_after_it(clock: Clock, cut_off: bool) -> None:
    """The read has begun; the change is made and, unless its sender has gone, answered; then the read is."""
    value, changed = "before", asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal value
        if scope["method"] == "POST":
            value = "after"
            if cut_off:
                raise ConnectionError
            answer = PlainTextResponse("done")
        else:
            answer = PlainTextResponse(value, headers=FOR_HALF_A_SECOND)
            if value == "before":
                await changed.wait()
        await answer(scope, receive, send)

    layer, bodies = KeptAnswers(app, clock), list[bytes]()

    async def send(message: Message) -> None:
        bodies.append(message.get("body", b""))

    async def story() -> None:
        reading = asyncio.create_task(layer(get(), None, send))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        writing = asyncio.create_task(layer(get(method="POST"), None, send))  # type: ignore[arg-type]
        await asyncio.wait([writing])
        assert (writing.exception() is not None) is cut_off
        changed.set()
        await reading
        await layer(get(), None, send)  # type: ignore[arg-type]

    asyncio.run(story())
    assert b"".join(bodies) == (b"beforeafter" if cut_off else b"donebeforeafter")


def test_who_hears_that_a_change_is_made_reads_it_at_once(clock: Clock) -> None:
    """The next request may come while the layers below still tidy up after the answer."""
    value = "before"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal value
        if scope["method"] == "POST":
            value = "after"
        answer = PlainTextResponse(value, headers=FOR_HALF_A_SECOND if scope["method"] == "GET" else {})
        await answer(scope, receive, send)

    layer, bodies = KeptAnswers(app, clock), list[bytes]()

    async def send(message: Message) -> None:
        bodies.append(message.get("body", b""))

    async def then_read(message: Message) -> None:
        if message["type"] == "http.response.body":
            await layer(get(), None, send)  # type: ignore[arg-type]

    async def story() -> None:
        await layer(get(), None, send)  # type: ignore[arg-type]
        await layer(get(method="POST"), None, then_read)  # type: ignore[arg-type]

    asyncio.run(story())
    assert b"".join(bodies) == b"beforeafter"


def test_a_job_is_told_again_to_the_same_tenant_alone(tmp_path: Path) -> None:
    """The real routes, with tokens: whoever may not see it hears so, however often it was shown."""
    guarded = Guarded(tmp_path)
    guarded.http = TestClient(KeptAnswers(guarded.app, Clock(0.0)), "http://127.0.0.1")
    with guarded.http:
        path = f"/api/v1/jobs/{guarded.submit('ann')}"
        first, second = (guarded.ask("GET", path, guarded.tokens["ann"]) for _ in range(2))
        assert first.json()["status"]["state"] == "QUEUED"
        assert second.headers["x-request-id"] == first.headers["x-request-id"], "it was not asked for again"
        assert guarded.ask("GET", path, guarded.tokens["bob"]).status_code == 404
        assert guarded.ask("GET", path).status_code == 401
        assert guarded.ask("POST", f"{path}/cancel", guarded.tokens["ann"]).status_code in {200, 202}
        assert guarded.ask("GET", path, guarded.tokens["ann"]).json()["status"]["state"] == "CANCELLED"
