"""Both clients say the same, and mean the same by the answers."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import httpx2
import pytest

from codistill.spec import JobSpec
from jobs import conversation
from jobs.async_client import AsyncClient
from jobs.client import Client, ServiceRefused, ServiceUnreachable, Wanted
from jobs.status import State


def methods(kind: type) -> dict[str, Any]:
    return {name: value for name, value in vars(kind).items() if not name.startswith("_") and callable(value)}


def test_both_have_the_same_methods_with_the_same_parameters() -> None:
    plain, waiting = methods(Client), methods(AsyncClient)
    assert plain.keys() == waiting.keys()
    assert len(plain) >= 28
    for name, method in plain.items():
        there = inspect.signature(waiting[name])
        # Compared as text: a default that is a function is another one there.
        parameters = [str(p).partition(" = <")[0] for p in inspect.signature(method).parameters.values()]
        assert [str(p).partition(" = <")[0] for p in there.parameters.values()] == parameters, name
        assert there.return_annotation == inspect.signature(method).return_annotation, name
        assert method.__doc__ == waiting[name].__doc__, name
        assert inspect.iscoroutinefunction(waiting[name]), name


JOB = {"id": "a-aaaaaa", "status": {"state": "QUEUED", "reason": None}}
ENDED = {"id": "a-aaaaaa", "status": {"state": "FAILED", "reason": {"code": "c", "message": "m"}}}


class Service:
    """Answers from a script, and remembers what it was asked."""

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append((request.method, request.url.raw_path.decode()))
        self.bodies.append(request.content)
        self.request = request
        status, body = self.answers.pop(0)
        headers = {"Codistill-Next-Offset": "7", "Retry-After": "6"}
        return httpx2.Response(status, headers=headers, **({"text": body} if isinstance(body, str) else {"json": body}))

    async def later(self, request: httpx2.Request) -> httpx2.Response:
        return self(request)


PROBLEM = {"code": "not_ended", "detail": "cancel it first", "errors": [{"path": "a"}]}
SAID = [
    ("submit", ({"name": "x"},), {"key": "k"}, [(202, JOB)], [("POST", "/api/v1/jobs")]),
    ("list", (), {"state": State.QUEUED}, [(200, {})], [("GET", "/api/v1/jobs?state=QUEUED&limit=50")]),
    (
        "list",
        (),
        {"wanted": Wanted([State.FAILED, State.RUNNING], {"a": "b c"}, "o"), "cursor": 3},
        [(200, {})],
        [("GET", "/api/v1/jobs?state=FAILED&state=RUNNING&label=a%3Db+c&owner=o&limit=50&cursor=3")],
    ),
    ("show", ("../x",), {}, [(200, JOB)], [("GET", "/api/v1/jobs/..%2Fx")]),
    ("cancel", ("j",), {}, [(202, JOB)], [("POST", "/api/v1/jobs/j/cancel")]),
    ("set_priority", ("j", 3), {}, [(200, JOB)], [("PATCH", "/api/v1/jobs/j")]),
    ("delete", ("j",), {}, [(204, "")], [("DELETE", "/api/v1/jobs/j")]),
    ("queue", (), {}, [(200, {})], [("GET", "/api/v1/queue")]),
    (
        "usage",
        (),
        {"owner": "ann", "created_from": "2026-11-01"},
        [(200, {"items": []})],
        [("GET", "/api/v1/usage?owner=ann&created_from=2026-11-01")],
    ),
    ("methods", (), {}, [(200, {"items": [1]})], [("GET", "/api/v1/methods")]),
    ("recipes", (), {}, [(200, {"items": [1]})], [("GET", "/api/v1/recipes")]),
    ("datasets", (), {}, [(200, {"items": [], "unreadable": []})], [("GET", "/api/v1/datasets")]),
    ("models", (), {"cursor": 7}, [(200, {"items": []})], [("GET", "/api/v1/models?limit=50&cursor=7")]),
    ("validate", ({},), {}, [(200, {})], [("POST", "/api/v1/jobs:validate")]),
    ("logs", ("j",), {"tail": 2}, [(200, "ab")], [("GET", "/api/v1/jobs/j/logs?replica=replica-0&tail=2")]),
    (
        "metrics",
        ("j",),
        {"names": ["a", "b"]},
        [(200, {"items": [1], "next_after_step": 4}), (200, {"items": [2], "next_after_step": None})],
        [
            ("GET", "/api/v1/jobs/j/metrics?replica=replica-0&names=a%2Cb&after_step=-1"),
            ("GET", "/api/v1/jobs/j/metrics?replica=replica-0&names=a%2Cb&after_step=4"),
        ],
    ),
    ("wait", ("j",), {"poll_s": 0.0}, [(200, JOB), (200, ENDED)], [("GET", "/api/v1/jobs/j")] * 2),
    ("ready", (), {}, [(503, PROBLEM)], [("GET", "/readyz")]),
    ("alive", (), {}, [(200, {})], [("GET", "/healthz")]),
    ("delete", ("j",), {}, [(409, PROBLEM)], [("DELETE", "/api/v1/jobs/j")]),
    ("queue", (), {}, [(502, "<html>")], [("GET", "/api/v1/queue")]),
]


def outcome(action: Any) -> Any:
    try:
        return action()
    except ServiceRefused as error:
        return (str(error), error.status, error.code, error.errors, error.retry_after_s)


@pytest.mark.parametrize(("name", "words", "options", "answers", "asked"), SAID)
def test_both_say_and_mean_the_same(name: str, words: Any, options: Any, answers: Any, asked: Any) -> None:
    plain, waiting = Service(*answers), Service(*answers)
    client, other = Client("http://s", token="t"), AsyncClient("http://s", token="t")
    client.close()
    client._http = httpx2.Client(base_url="http://s", transport=httpx2.MockTransport(plain))
    first = outcome(lambda: getattr(client, name)(*words, **options))

    async def again() -> Any:
        await other.close()
        other._http = httpx2.AsyncClient(base_url="http://s", transport=httpx2.MockTransport(waiting.later))
        try:
            return await getattr(other, name)(*words, **options)
        finally:
            await other.close()

    second = outcome(lambda: asyncio.run(again()))
    client.close()
    assert plain.asked == waiting.asked == asked
    assert first == second
    assert plain.bodies == waiting.bodies
    if name == "set_priority":
        assert plain.bodies == [b'{"priority":3}']
    if name == "submit":
        assert plain.request.headers["idempotency-key"] == "k"
    if name == "metrics":
        assert first == [1, 2]
    if name == "logs":
        assert first == ("ab", 7)
    if name in ("ready", "alive"):
        assert first is (name == "alive")
    if answers[-1][0] == 409:
        assert first == ("cancel it first", 409, "not_ended", [{"path": "a"}], 6.0)


def test_waiting_ends_in_time_and_nobody_is_told_as_such() -> None:
    async def at_once() -> None:
        async with AsyncClient("http://127.0.0.1:9") as nobody:
            assert not await nobody.alive()
            with pytest.raises(ServiceUnreachable, match="no service answers at http://127"):
                await nobody.show("x")

    asyncio.run(at_once())
    with Client("http://s") as client:
        client._http.close()
        client._http = httpx2.Client(base_url="http://s", transport=httpx2.MockTransport(Service(*[(200, JOB)] * 9)))
        with pytest.raises(TimeoutError, match="still QUEUED after 0 s"):
            client.wait("a", timeout_s=0, poll_s=0.0)


def test_a_spec_is_sent_as_it_is() -> None:
    talk = conversation.submit(JobSpec(name="mine"), None)
    asked = next(talk)
    assert isinstance(asked, conversation.Ask)
    assert asked.json == JobSpec(name="mine").model_dump(mode="json")
    assert asked.headers == {}
