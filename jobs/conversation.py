"""What is asked of a service, and what the answers mean: without a socket, so that both clients say the same.

A conversation is a generator: it yields what to ask or how long to pause, is sent the answers, and returns its result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from codistill.spec import JobSpec
from jobs.media import ARROW
from jobs.patience import Patience
from jobs.status import State
from jobs.wire import Ask, Conversation, Pause, RemoteJob, ServiceRefused, ServiceUnreachable

if TYPE_CHECKING:
    import pyarrow as pa


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
    """A service that is started again meanwhile is waited for, too."""
    give_up = math.inf if timeout_s is None else time.monotonic() + timeout_s
    patience, state = Patience(), "unknown"
    while True:
        try:
            job = yield from show(job_id)
        except (ServiceRefused, ServiceUnreachable) as error:
            pause_s = patience.pause_s(error)
        else:
            patience.answered()
            seen(job)
            if job.ended:
                return job
            state, pause_s = job.state, poll_s
        left_s = give_up - time.monotonic()
        if left_s < 0:
            raise TimeoutError(f"{job_id} is still {state} after {timeout_s:g} s")
        yield Pause(min(pause_s, left_s))


def _plain(spec: JobSpec | Mapping[str, Any]) -> dict[str, Any]:
    return spec.model_dump(mode="json") if isinstance(spec, JobSpec) else dict(spec)


def _job(job_id: str) -> str:
    """The path of a job, whatever the user typed."""
    return f"/api/v1/jobs/{quote(job_id, safe='')}"
