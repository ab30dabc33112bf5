"""The body of a request: JSON, not too long, and there in time, before any route sees the request."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.types import Message, Receive

from jobs.problems import ApiProblem

UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})


def check_body(request: Request, most_bytes: int) -> None:
    """Raise `ApiProblem` for a body that is announced as too long, or as anything but JSON: a form of another site's
    page can only send what is not."""
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > most_bytes:
        raise too_large(most_bytes)
    if request.method not in UNSAFE or not is_announced(request):
        return
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiProblem(
            415,
            "not_json",
            f"the body has to be JSON, not {kind or 'without a type'}; send Content-Type: application/json",
        )


def is_announced(request: Request) -> bool:
    """Whether a body follows, which of HTTP/1.1 only the headers tell."""
    return request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers


async def arrived(request: Request, receive: Receive, most_bytes: int, timeout_s: float) -> Receive:
    """`receive` with the whole body in its first message. Raises `ApiProblem` as soon as more has come than was
    allowed, whatever the headers said, and for one that takes too long."""
    if not is_announced(request):
        return receive
    body = bytearray()
    message: Message = {"type": "http.request", "more_body": True}
    try:
        async with asyncio.timeout(timeout_s):
            while message.get("more_body", False):
                message = await receive()
                body += message.get("body", b"")
                if len(body) > most_bytes:
                    raise too_large(most_bytes)
    except TimeoutError:
        detail = f"the body did not come within {timeout_s:g} s; send it again, and all at once"
        raise ApiProblem(408, "body_too_slow", detail) from None
    if message["type"] == "http.request":
        message = {**message, "body": bytes(body)}
    first = [message]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


def too_large(most_bytes: int) -> ApiProblem:
    """413: a body of more than `most_bytes`."""
    return ApiProblem(413, "body_too_large", f"a body has at most {most_bytes:,} bytes; send less")
