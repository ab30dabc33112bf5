"""Requests and answers of a service, as values: what both clients send and receive, and what an answer means."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx2

from jobs.job import Reason
from jobs.status import TERMINAL, State


class ServiceUnreachable(RuntimeError):
    """Nobody answers at the address."""


class ServiceRefused(RuntimeError):
    """The service answered with an error; the message is its sentence."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        errors: Sequence[Mapping[str, Any]] = (),
        *,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.errors, self.retry_after_s = status, code, errors, retry_after_s


@dataclass(frozen=True)
class RemoteJob:
    """A job as the service shows it."""

    id: str
    state: State
    reason: Reason | None
    value: Mapping[str, Any]
    """The whole answer."""

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> RemoteJob:
        status = value["status"]
        return RemoteJob(value["id"], State(status["state"]), Reason.from_json(status.get("reason")), value)

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL


@dataclass(frozen=True)
class Ask:
    """One request. Parameters that are None are left out."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    json: Any = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Pause:
    """Nothing is asked for so many seconds."""

    seconds: float


POLL_S = 0.5
"""Between two questions about the same thing."""
NO_ANSWER = (httpx2.TransportError, httpx2.InvalidURL, httpx2.UnsupportedProtocol)
FAILED = (*NO_ANSWER, ServiceUnreachable, ServiceRefused)
UNKNOWN = "unknown"
"""Code of an error that says nothing of itself."""
Result = TypeVar("Result")
Conversation = Generator[Ask | Pause, httpx2.Response, Result]


def checked(answer: httpx2.Response) -> httpx2.Response:
    """The answer, unless it is an error. Raises `ServiceRefused`."""
    if not answer.is_error:
        return answer
    given = answer.headers.get("Retry-After", "")
    retry_after_s = float(given) if given.isdigit() else None
    try:
        problem = answer.json()
        code, detail, errors = problem["code"], problem["detail"], problem.get("errors", ())
    except (ValueError, KeyError, TypeError):  # not our service, or something between it and us
        code, detail, errors = UNKNOWN, f"the answer was {answer.status_code}, and no problem", ()
    raise ServiceRefused(answer.status_code, code, detail, errors, retry_after_s=retry_after_s)


def settings(url: str, token: str | None, timeout_s: float) -> dict[str, Any]:
    """Of an HTTP client."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    # The environment's proxies are for the outside; a service is asked directly.
    return {"base_url": url, "headers": headers, "timeout": timeout_s, "trust_env": False}


def request_of(ask: Ask) -> dict[str, Any]:
    """As the HTTP client takes it."""
    given = {key: value for key, value in ask.params.items() if value is not None}
    return {"method": ask.method, "url": ask.path, "params": given, "json": ask.json, "headers": dict(ask.headers)}


def unreachable(url: str, error: Exception) -> ServiceUnreachable:
    """What it means when no answer came."""
    told = ServiceUnreachable(f"no service answers at {url}: {error or type(error).__name__}")
    told.__cause__ = error
    return told


def told(url: str, error: Exception) -> ServiceUnreachable | ServiceRefused:
    """One of `FAILED`, as it is told."""
    return error if isinstance(error, (ServiceUnreachable, ServiceRefused)) else unreachable(url, error)
