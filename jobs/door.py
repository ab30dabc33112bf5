"""Who may come in: what is checked of every request before any route sees it.

In this order: that it is meant for this service (Host), and not sent by a foreign page (Origin, Sec-Fetch-Site); who
sends it (a token); how often they may; that its body is JSON and not too long; how many at once they may, and that the
body comes in time. The decisions are pure; `Door` is the ASGI layer around them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import re
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from codistill.spec_errors import MAX_SPEC_BYTES
from jobs.bodies import UNSAFE, arrived, check_body
from jobs.callers import LOCAL, Caller, Presented, Scope, Token, presented
from jobs.errors import StoreError
from jobs.problems import ApiProblem, problem_response
from jobs.rate import Buckets, OpenRequests, Rate

OPEN = frozenset({"/healthz", "/", "/compare", "/studies", "/queue", "/submit"})
"""Paths for everybody, of which nothing is learned but that somebody is there. The pages among them hold no data: a
browser sends no token with an address, so their scripts ask for one, and for the data with it."""
OPEN_PREFIXES = ("/static/", "/jobs/", "/studies/")
"""The page's own files, and the page of a job: the same for every id, whether there is such a job or not."""
CHANGES_NOTHING = ":validate"
"""How paths end that are counted among the reads, though posted: a form asks there as often as somebody types."""
READY = "/readyz"
"""Asked by probes, which must hear the truth from a service that is busy, too."""
OPEN_RETRY_S = 5.0
"""After which one of many open requests may have ended."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


READS, WRITES, GUESSES = Rate(per_s=20.0, burst=40.0), Rate(per_s=10 / 60, burst=20.0), Rate(per_s=1.0, burst=10.0)


@dataclass(frozen=True)
class DoorRules:
    """How strict the door is."""

    needs_token: bool = False
    hosts: Collection[str] = LOOPBACK_HOSTS
    """Names under which the service is reached; anything else is another site's name for our address."""
    reads: Rate = READS
    writes: Rate = WRITES
    """Of one token each; without tokens there is no limit."""
    guesses: Rate = GUESSES
    """Wrong tokens from one address."""
    open_at_once: int = 40
    """Requests of one token each, or of all that come without one: a browser opens six to a service at most."""
    max_body_bytes: int = MAX_SPEC_BYTES
    body_timeout_s: float = 10.0
    """Until the whole of it is there."""


FindToken = Callable[[Presented], Token | None]


class Door:
    """The layer. A request that passes has its `Caller` in `request.state.caller`."""

    def __init__(
        self,
        app: ASGIApp,
        rules: DoorRules,
        find_token: FindToken,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._rules, self._find_token, self._clock = app, rules, find_token, clock
        self._buckets, self._open = Buckets(), OpenRequests()

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        request = Request(scope)
        try:
            check_origin(request.headers, self._rules.hosts)
            caller = await self._caller(request)
            check_body(request, self._rules.max_body_bytes)
            scope["state"]["caller"] = replace(caller, request_id=request_id)
            if is_open(request.url.path) or request.url.path == READY:  # nothing behind them waits, or reads a body
                await self._app(scope, receive, send_with_id)
                return
            with self._open.one_more(caller.token_id or caller.owner, self._rules.open_at_once) as may:
                if not may:
                    most = self._rules.open_at_once
                    raise too_often(f"{most} of your requests are open, as many as may be; let one end", OPEN_RETRY_S)
                whole = await arrived(request, receive, self._rules.max_body_bytes, self._rules.body_timeout_s)
                await self._app(scope, whole, send_with_id)
        except ApiProblem as problem:
            await problem_response(problem, request_id)(scope, receive, send_with_id)

    async def _caller(self, request: Request) -> Caller:
        path = request.url.path
        if not self._rules.needs_token:
            return LOCAL
        if is_open(path):
            return Caller("nobody", Scope.READ)
        token = await self._token(request)
        writes = request.method in UNSAFE and not path.endswith(CHANGES_NOTHING)
        rate = self._rules.writes if writes else self._rules.reads
        self._take((token.id, writes), rate, "this token asks too often")
        return Caller(token.owner, token.scope, token.id)

    async def _token(self, request: Request) -> Token:
        sent = presented(bearer(request.headers) or "")
        try:
            token = None if sent is None else await asyncio.to_thread(self._find_token, sent)
        except StoreError as error:
            raise ApiProblem(503, "store_unavailable", str(error)) from None
        if token is not None:
            return token
        address = request.client.host if request.client else "unknown"
        self._take(("wrong", address), self._rules.guesses, "too many requests without a valid token")
        raise ApiProblem(
            401,
            "no_valid_token",
            "send 'Authorization: Bearer TOKEN' with a token that has not ended (the command line takes it from"
            " CODISTILL_TOKEN); codistill token create makes one",
            headers={"WWW-Authenticate": 'Bearer realm="codistill"'},
        )

    def _take(self, who: tuple[object, ...], rate: Rate, why: str) -> None:
        wait_s = self._buckets.take(who, rate, self._clock())
        if wait_s > 0:
            raise too_often(f"{why}; wait {math.ceil(wait_s)} s", wait_s)


def is_open(path: str) -> bool:
    """Whether everybody may have it."""
    return path in OPEN or path.startswith(OPEN_PREFIXES)


def too_often(detail: str, wait_s: float, code: str = "too_many_requests") -> ApiProblem:
    """429, with the time after which to try again."""
    return ApiProblem(429, code, detail, headers={"Retry-After": str(max(1, math.ceil(wait_s)))})


def request_id_of(headers: Mapping[str, str]) -> str:
    """What the caller named the request, if that may stand in a log; a new name otherwise."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def bearer(headers: Mapping[str, str]) -> str | None:
    """The token in the Authorization header."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if kind.lower() == "bearer" else None


def check_origin(headers: Mapping[str, str], hosts: Collection[str]) -> None:
    """Raise `ApiProblem` for a request that another site's page could have sent: under a name of its own that resolves
    to our address, or across origins."""
    host = hostname(headers.get("host", ""))
    if host not in hosts:
        detail = f"this service is not called {host!r}; use {', '.join(sorted(hosts))}, or serve with --host-name"
        raise ApiProblem(421, "unknown_host", detail)
    if headers.get("sec-fetch-site") == "cross-site":
        raise ApiProblem(403, "cross_site", "pages of other sites may not use this service; open its own page")
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        raise ApiProblem(403, "cross_site", f"pages of {origin!r} may not use this service; open its own page")


def hostname(host: str) -> str:
    """Of a Host header, without its port and brackets, in lower case."""
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    return name.strip("[]").lower()


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
