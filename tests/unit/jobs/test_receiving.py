"""What Serve fetches of a request: nothing, until the app asks."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any, cast

from ray.serve._private.common import RequestMetadata
from ray.serve._private.http_util import ASGIReceiveProxy
from starlette.types import Message, Receive, Scope, Send

from jobs.receiving import ReceiveOnDemand

BODY: Message = {"type": "http.request", "body": b"half of ", "more_body": True}
REST: Message = {"type": "http.request", "body": b"it", "more_body": False}
GONE: Message = {"type": "http.disconnect"}


class Proxy:
    """The other end: what a sender has sent so far, batch by batch; then it waits, as for one who stays."""

    def __init__(self, *batches: list[Message]) -> None:
        self.fetched, self._batches = 0, list(batches)

    async def fetch(self, _: RequestMetadata) -> bytes:
        self.fetched += 1
        if not self._batches:
            await asyncio.Event().wait()
        return pickle.dumps(self._batches.pop(0))


async def answered(proxy: Proxy, app: Any) -> None:
    """As Serve calls an app: the fetching begins as a task of its own, and is cancelled once the app is done."""
    receive = ASGIReceiveProxy({"type": "http"}, RequestMetadata(request_id="1", internal_request_id="1"), proxy.fetch)
    fetching = asyncio.create_task(receive.fetch_until_disconnect())
    await ReceiveOnDemand(app)({"type": "http"}, cast(Receive, receive), cast(Send, None))
    fetching.cancel()


def heard_by(proxy: Proxy, messages: int, *, pause_s: float = 0.01) -> list[Message]:
    """By an app that takes its time and asks so often."""
    heard: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(pause_s)
        for _ in range(messages):
            heard.append(await asyncio.wait_for(receive(), 5))

    asyncio.run(answered(proxy, app))
    return heard


def test_who_asks_for_nothing_has_nothing_fetched() -> None:
    proxy = Proxy([BODY], [REST])
    assert heard_by(proxy, 0) == []
    assert proxy.fetched == 0


def test_a_body_comes_whole_and_its_end_after_it() -> None:
    proxy = Proxy([BODY], [REST, GONE])
    assert heard_by(proxy, 4) == [BODY, REST, GONE, GONE]
    assert proxy.fetched == 2


def test_a_request_that_the_proxy_knows_no_more_has_ended() -> None:
    class Forgotten(Proxy):
        async def fetch(self, _: RequestMetadata) -> bytes:
            raise KeyError("1")

    assert heard_by(Forgotten(), 1) == [GONE]


def test_what_is_not_serves_is_left_alone() -> None:
    async def receive() -> Message:
        return GONE

    async def app(scope: Scope, given: Receive, send: Send) -> None:
        assert given is receive

    asyncio.run(ReceiveOnDemand(app)({"type": "http"}, receive, cast(Send, None)))
