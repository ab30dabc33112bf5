"""What is asked of a service, and what the answers mean: without a socket, so that both clients say the same.

A conversation is a generator: it yields what to ask or how long to pause, is sent the answers, and returns its result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote

import httpx2

from codistill.spec import JobSpec
from jobs.job import Reason
from jobs.media import ARROW
from jobs.status import TERMINAL, State

if TYPE_CHECKING:
    import pyarrow as pa


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
Result = TypeVar("Result")
Conversation = Generator[Ask | Pause, httpx2.Response, Result]


@dataclass(frozen=True)
class Wanted:
    """Which jobs to list; what is None or empty lets all pass."""

    states: Sequence[State] = ()
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    owner: str | None = None
    name: str | None = None
    parent: str | None = None
    created_from: str | None = None
    created_before: str | None = None
    """Times as RFC 3339 has them."""

    def as_params(self) -> dict[str, Any]:
        labels = [f"{key}={value}" for key, value in self.labels.items()]
        single = {name: getattr(self, name) for name in ("owner", "name", "parent", "created_from", "created_before")}
        return {"state": [state.value for state in self.states] or None, "label": labels or None, **single}


# ---------------------------------------------------------------- conversations


def submit(spec: JobSpec | Mapping[str, Any], key: str | None) -> Conversation[RemoteJob]:
    headers = {} if key is None else {"Idempotency-Key": key}
    return RemoteJob.from_json((yield Ask("POST", "/api/v1/jobs", json=_plain(spec), headers=headers)).json())


def validate(spec: JobSpec | Mapping[str, Any]) -> Conversation[dict[str, Any]]:
    return (yield Ask("POST", "/api/v1/jobs:validate", json=_plain(spec))).json()


def page(wanted: Wanted, limit: int, cursor: int | None) -> Conversation[dict[str, Any]]:
    return (yield Ask("GET", "/api/v1/jobs", {**wanted.as_params(), "limit": limit, "cursor": cursor})).json()


def every(wanted: Wanted) -> Conversation[list[dict[str, Any]]]:
    items: list[dict[str, Any]] = []
    cursor: int | None = None
    while True:
        found = yield from page(wanted, 500, cursor)
        items += found["items"]
        cursor = found["next_cursor"]
        if cursor is None:
            return items


def show(job_id: str) -> Conversation[RemoteJob]:
    return RemoteJob.from_json((yield Ask("GET", _job(job_id))).json())


def cancel(job_id: str) -> Conversation[RemoteJob]:
    return RemoteJob.from_json((yield Ask("POST", f"{_job(job_id)}/cancel")).json())


def set_priority(job_id: str, priority: int) -> Conversation[RemoteJob]:
    return RemoteJob.from_json((yield Ask("PATCH", _job(job_id), json={"priority": priority})).json())


def delete(job_id: str) -> Conversation[None]:
    yield Ask("DELETE", _job(job_id))


def go_on(
    job_id: str, way: Literal["resume", "fork"], changes: Mapping[str, Any] | None, key: str | None
) -> Conversation[RemoteJob]:
    headers = {} if key is None else {"Idempotency-Key": key}
    asked = Ask("POST", f"{_job(job_id)}/{way}", json={"changes": dict(changes or {})}, headers=headers)
    return RemoteJob.from_json((yield asked).json())


def artifacts(job_id: str) -> Conversation[list[dict[str, Any]]]:
    return (yield Ask("GET", f"{_job(job_id)}/artifacts")).json()["items"]


def artifact_path(job_id: str, artifact: Mapping[str, Any]) -> str:
    """Where one of `artifacts` is had."""
    return f"{_job(job_id)}/artifacts/{quote(artifact['name'])}"


def queue() -> Conversation[dict[str, Any]]:
    return (yield Ask("GET", "/api/v1/queue")).json()


def usage(owner: str | None, created_from: str | None, created_before: str | None) -> Conversation[dict[str, Any]]:
    params = {"owner": owner, "created_from": created_from, "created_before": created_before}
    return (yield Ask("GET", "/api/v1/usage", params)).json()


def methods() -> Conversation[list[dict[str, Any]]]:
    return (yield Ask("GET", "/api/v1/methods")).json()["items"]


def recipes() -> Conversation[list[dict[str, Any]]]:
    return (yield Ask("GET", "/api/v1/recipes")).json()["items"]


def datasets() -> Conversation[dict[str, Any]]:
    return (yield Ask("GET", "/api/v1/datasets")).json()


def models(limit: int, cursor: int | None) -> Conversation[dict[str, Any]]:
    return (yield Ask("GET", "/api/v1/models", {"limit": limit, "cursor": cursor})).json()


def schema() -> Conversation[dict[str, Any]]:
    return (yield Ask("GET", "/api/v1/schema")).json()


def version() -> Conversation[dict[str, Any]]:
    return (yield Ask("GET", "/version")).json()


def logs(job_id: str, replica: str, tail: int | None, offset: int | None) -> Conversation[tuple[str, int]]:
    answer = yield Ask("GET", f"{_job(job_id)}/logs", {"replica": replica, "tail": tail, "offset": offset})
    return answer.text, int(answer.headers["Codistill-Next-Offset"])


def rows(
    job_id: str, kind: str, replica: str, names: Iterable[str] | None, after_step: int
) -> Conversation[list[dict[str, Any]]]:
    """Of the tables 'metrics' or 'ledger', page after page."""
    found: list[dict[str, Any]] = []
    following: int | None = after_step
    wanted = None if names is None else ",".join(names)
    while following is not None:
        params = {"replica": replica, "names": wanted, "after_step": following}
        answer = (yield Ask("GET", f"{_job(job_id)}/{kind}", params)).json()
        found += answer["items"]
        following = answer["next_after_step"]
    return found


def table(
    job_id: str, kind: str, replica: str, names: Iterable[str] | None, after_step: int, max_points: int | None
) -> Conversation[pa.Table]:
    """Of the tables 'metrics' or 'ledger', all at once."""
    import pyarrow as pa

    wanted = None if names is None else ",".join(names)
    params = {"replica": replica, "names": wanted, "after_step": after_step, "max_points": max_points}
    answer = yield Ask("GET", f"{_job(job_id)}/{kind}", params, headers={"Accept": ARROW})
    return pa.ipc.open_stream(answer.content).read_all()


def is_well(path: str) -> Conversation[bool]:
    try:
        yield Ask("GET", path)
    except (ServiceRefused, ServiceUnreachable):
        return False
    return True


def wait(
    job_id: str, timeout_s: float | None, poll_s: float, seen: Callable[[RemoteJob], None]
) -> Conversation[RemoteJob]:
    give_up = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        job = yield from show(job_id)
        seen(job)
        if job.ended:
            return job
        if give_up is not None and time.monotonic() > give_up:
            raise TimeoutError(f"{job_id} is still {job.state} after {timeout_s:g} s")
        yield Pause(poll_s)


# ---------------------------------------------------------------- words and meanings


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
        code, detail, errors = "unknown", f"the answer was {answer.status_code}, and no problem", ()
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


def _plain(spec: JobSpec | Mapping[str, Any]) -> dict[str, Any]:
    return spec.model_dump(mode="json") if isinstance(spec, JobSpec) else dict(spec)


def _job(job_id: str) -> str:
    """The path of a job, whatever the user typed."""
    return f"/api/v1/jobs/{quote(job_id, safe='')}"
