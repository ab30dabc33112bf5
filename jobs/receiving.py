"""What comes of a request, asked of Serve's proxy only when somebody wants it.

Serve's copy of the API begins to fetch each request's body and its end, two calls between processes, before it looks at
the request; a GET wants neither. Everything that is private to Serve 2.60 and not told by its configuration is here.
"""

from __future__ import annotations

import asyncio

from ray.serve._private.common import RequestMetadata
from ray.serve._private.http_util import ASGIReceiveProxy
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class ReceiveOnDemand:
    """The outermost layer, which Serve calls before its fetching has begun."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, on_demand(receive) if isinstance(receive, ASGIReceiveProxy) else receive, send)


def on_demand(receive: ASGIReceiveProxy) -> Receive:
    """`receive`, whose messages are fetched from its first call on."""
    asked, fetch = asyncio.Event(), receive._receive_asgi_messages  # pyright: ignore[reportPrivateUsage]

    async def fetch_when_asked(request: RequestMetadata) -> bytes:
        await asked.wait()
        return await fetch(request)

    async def ask() -> Message:
        asked.set()
        return await receive()

    receive._receive_asgi_messages = fetch_when_asked  # pyright: ignore[reportPrivateUsage]
    return ask
