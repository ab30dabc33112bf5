"""What Serve's HTTP proxy is told to do before it looks at a request itself.

Serve takes orders from headers: how long a request may take, and that it goes on when its sender has gone. Those are
the operator's to give and not the sender's. And what was answered a moment ago it may answer itself. Serve calls
`middlewares` where its proxy's environment names it.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from jobs.kept_answers import KeptAnswers

CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = "jobs.proxy.middlewares"
ORDERS = frozenset({b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"serve_multiplexed_model_id"})


class WithoutOrders:
    """Passes requests on without the headers that would steer Serve."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if name not in ORDERS]}
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Serve puts around its proxy, the outermost last."""
    return [Middleware(KeptAnswers), Middleware(WithoutOrders)]
