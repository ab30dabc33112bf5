"""How long requests take: the outermost layer, which sees what the door refuses, too."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Latency:
    """Observes method, route (its template, never a path that somebody made up) and class of the status. Seconds until
    the answer has begun: a log that is followed for an hour is not a slow one."""

    def __init__(
        self, app: ASGIApp, registry: CollectorRegistry, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._app, self._clock = app, clock
        self._seconds = Histogram(
            "codistill_http_request_duration_seconds",
            "Seconds until a request's answer began.",
            ["method", "route", "status"],
            buckets=BUCKETS_S,
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = self._clock()

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                method = scope["method"] if scope["method"] in _METHODS else "other"
                status = f"{message['status'] // 100}xx"
                self._seconds.labels(method, route_of(scope), status).observe(self._clock() - begun)
            await send(message)

        await self._app(scope, receive, observed)


def route_of(scope: Scope) -> str:
    """Of the route that answered; what the door or nobody answered is 'none'."""
    return str(getattr(scope.get("route"), "path", "none"))
