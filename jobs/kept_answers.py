"""An answer kept for a moment, for whoever asks exactly the same again.

Those who wait for a job ask for it several times a second, and each answer takes processor time of three processes. A
route says by the header `KEEP` for how long its answer may serve others; Serve's proxy takes the header off and keeps
it. What is asked has to be the same to the byte, all headers and so the token included: nobody gets what was made for
somebody else. All that is kept is dropped when somebody changes something through the same proxy, who then reads what
they wrote; and with each part of events or of a log that is followed, so that nobody reads what was before what they
heard there. Who wants it anew says `Cache-Control: no-cache`, as a browser does for the page.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

KEEP = "codistill-keep-ms"
"""Milliseconds, from the beginning of the request."""
UNCHANGING = frozenset({"GET", "HEAD", "OPTIONS"})
ANEW = frozenset({b"no-cache", b"no-store"})
"""Of `Cache-Control`."""
MOST_ANSWERS, MOST_BYTES = 256, 2**18

Asked = tuple[str, bytes, bytes, tuple[tuple[bytes, bytes], ...]]
"""Method, path, query and headers."""


@dataclass(frozen=True)
class Answer:
    """Status and headers, the whole body, and the moment of the clock until which it may be given."""

    start: Message
    body: Message
    until_s: float


class KeptAnswers:
    """The layer. What is longer than `MOST_BYTES`, question included, or comes in parts, is not kept; of more than
    `MOST_ANSWERS` the oldest go."""

    def __init__(self, app: ASGIApp, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._app, self._clock_s = app, clock_s
        self._kept: OrderedDict[Asked, Answer] = OrderedDict()
        self._changes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] in UNCHANGING:
            await self._read(scope, receive, send)
        else:
            await self._change(scope, receive, send)

    async def _read(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = tuple((name, value) for name, value in scope["headers"])
        asked = (scope["method"], scope["raw_path"], scope["query_string"], headers)
        now_s, changes = self._clock_s(), self._changes
        kept = self._kept.get(asked)
        if kept is not None and now_s < kept.until_s and not wants_anew(headers):
            await send(copied(kept.start))
            await send(dict(kept.body))
            return
        start: Message = {}
        keep_s, in_parts = 0.0, False

        async def pass_on(message: Message) -> None:
            nonlocal start, keep_s, in_parts
            if message["type"] == "http.response.start":
                message, keep_s = without_keep(message)
                start = copied(message)
            elif message["type"] == "http.response.body":
                in_parts = in_parts or message.get("more_body", False)
                if in_parts and tells_news(start):
                    self._forget()
                elif keep_s > 0 and not in_parts and changes == self._changes:
                    self._keep(asked, Answer(start, dict(message), now_s + keep_s), now_s)
            await send(message)

        await self._app(scope, receive, pass_on)

    def _keep(self, asked: Asked, answer: Answer, now_s: float) -> None:
        while self._kept and next(iter(self._kept.values())).until_s <= now_s:
            self._kept.popitem(last=False)
        if size_of(asked, answer) <= MOST_BYTES:
            self._kept[asked] = answer
            self._kept.move_to_end(asked)
        if len(self._kept) > MOST_ANSWERS:
            self._kept.popitem(last=False)

    async def _change(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What is on its way to be answered meanwhile may tell what was before: it is not kept either."""

        async def forget_first(message: Message) -> None:
            self._forget()
            await send(message)

        try:
            await self._app(scope, receive, forget_first)
        finally:  # it may have changed something though nobody waits for its answer
            self._forget()

    def _forget(self) -> None:
        self._changes += 1
        self._kept.clear()


def wants_anew(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether the sender says so."""
    said = [value for name, value in headers if name == b"cache-control"]
    return any(word.strip().lower() in ANEW for value in said for word in value.split(b","))


def tells_news(start: Message) -> bool:
    """Whether what comes in parts is read as it comes: events, and a log that is followed."""
    return any(name == b"content-type" and value.startswith(b"text/") for name, value in start["headers"])


def size_of(asked: Asked, answer: Answer) -> int:
    """In bytes, but for what Python takes beside."""
    _, path, query, headers = asked
    sent = sum(len(name) + len(value) for name, value in headers)
    return len(path) + len(query) + sent + len(answer.body.get("body", b""))


def copied(start: Message) -> Message:
    """To be changed by the layers around this one, as they do."""
    return {**start, "headers": list(start["headers"])}


def without_keep(start: Message) -> tuple[Message, float]:
    """The beginning of an answer without `KEEP`, and the seconds that it says: 0 where it says nothing, or the answer
    is no success."""
    name = KEEP.encode()
    headers = [(key, value) for key, value in start["headers"] if key != name]
    said_ms = [int(value) for key, value in start["headers"] if key == name]
    return {**start, "headers": headers}, sum(said_ms) / 1000 if start["status"] == 200 else 0.0
