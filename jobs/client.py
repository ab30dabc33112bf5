"""Talking to a service from Python: a small typed client, without Ray.

with Client("http://127.0.0.1:8700") as client:
    job = client.wait(client.submit(spec).id)
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx2

from codistill.spec import JobSpec
from jobs.job import Reason
from jobs.status import TERMINAL, State

DEFAULT_URL = "http://127.0.0.1:8700"
TIMEOUT_S = 20.0
"""Longer than a restart of the service's processes takes: requests are held meanwhile and then answered."""


class ServiceUnreachable(RuntimeError):
    """Nobody answers at the address."""


class ServiceRefused(RuntimeError):
    """The service answered with an error; the message is its sentence."""

    def __init__(self, status: int, code: str, detail: str, errors: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(detail)
        self.status, self.code, self.errors = status, code, errors


class DownloadDiffers(RuntimeError):
    """What came is not what the service has."""


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


class Client:
    """One service. Methods raise `ServiceUnreachable` or `ServiceRefused`."""

    def __init__(self, url: str = DEFAULT_URL, *, token: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        # The environment's proxies are for the outside; a service is asked directly.
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(self, spec: JobSpec | Mapping[str, Any]) -> RemoteJob:
        value = spec.model_dump(mode="json") if isinstance(spec, JobSpec) else dict(spec)
        return RemoteJob.from_json(self._ask("POST", "/api/v1/jobs", json=value).json())

    def resume(self, job_id: str, changes: Mapping[str, Any] | None = None, *, key: str | None = None) -> RemoteJob:
        """A new job that goes on with the same training. `changes` is a part of a spec; the same `key` is the same
        job."""
        return self._go_on(job_id, "resume", changes, key)

    def fork(self, job_id: str, changes: Mapping[str, Any] | None = None, *, key: str | None = None) -> RemoteJob:
        """A new job that begins another training from the newest checkpoints."""
        return self._go_on(job_id, "fork", changes, key)

    def _go_on(self, job_id: str, way: str, changes: Mapping[str, Any] | None, key: str | None) -> RemoteJob:
        body, headers = {"changes": dict(changes or {})}, {} if key is None else {"Idempotency-Key": key}
        answer = self._ask("POST", f"/api/v1/jobs/{_segment(job_id)}/{way}", json=body, headers=headers)
        return RemoteJob.from_json(answer.json())

    def list(self, *, limit: int = 50, cursor: int | None = None, state: State | None = None) -> dict[str, Any]:
        """{items, next_cursor}, newest first."""
        parameters = {"limit": limit, "cursor": cursor, "state": state.value if state else None}
        return self._ask("GET", "/api/v1/jobs", params=parameters).json()

    def show(self, job_id: str) -> RemoteJob:
        return RemoteJob.from_json(self._ask("GET", f"/api/v1/jobs/{_segment(job_id)}").json())

    def cancel(self, job_id: str) -> RemoteJob:
        return RemoteJob.from_json(self._ask("POST", f"/api/v1/jobs/{_segment(job_id)}/cancel").json())

    def queue(self) -> dict[str, Any]:
        """Who waits, in order, and what is reserved of what there is."""
        return self._ask("GET", "/api/v1/queue").json()

    def logs(
        self, job_id: str, *, replica: str = "replica-0", tail: int | None = None, offset: int | None = None
    ) -> tuple[str, int]:
        """A piece of a log and the offset after it."""
        parameters = {"replica": replica, "tail": tail, "offset": offset}
        answer = self._ask("GET", f"/api/v1/jobs/{_segment(job_id)}/logs", params=parameters)
        return answer.text, int(answer.headers["Codistill-Next-Offset"])

    def metrics(
        self, job_id: str, *, replica: str = "replica-0", names: Iterable[str] | None = None, after_step: int = -1
    ) -> list[dict[str, Any]]:
        """All rows of steps above `after_step`, each (step, name) once."""
        wanted = ",".join(names) if names is not None else None
        return self._rows(job_id, "metrics", {"replica": replica, "names": wanted}, after_step)

    def ledger(self, job_id: str, *, replica: str = "replica-0", after_step: int = -1) -> list[dict[str, Any]]:
        """Who taught `replica` in which step, and how stale."""
        return self._rows(job_id, "ledger", {"replica": replica}, after_step)

    def artifacts(self, job_id: str) -> Sequence[Mapping[str, Any]]:
        """What a job has left: {name, bytes, sha256, media_type} each."""
        return self._ask("GET", f"/api/v1/jobs/{_segment(job_id)}/artifacts").json()["items"]

    def download(self, job_id: str, artifact: Mapping[str, Any], target: Path) -> None:
        """Write one of `artifacts` to `target`, whole or not at all. Raises `DownloadDiffers`, and `OSError`."""
        path = f"/api/v1/jobs/{_segment(job_id)}/artifacts/{quote(artifact['name'])}"
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.part")
        digest = hashlib.sha256()
        try:
            with self._http.stream("GET", path) as answer, unfinished.open("wb") as file:
                if answer.is_error:
                    answer.read()
                    raise _refused(answer)
                for chunk in answer.iter_bytes():
                    digest.update(chunk)
                    file.write(chunk)
            if artifact["sha256"] not in (None, digest.hexdigest()):
                raise DownloadDiffers(f"{artifact['name']} came with another SHA-256 than it has; download it again")
            unfinished.replace(target)
        except httpx2.TransportError as error:
            raise ServiceUnreachable(f"{self.url} stopped answering: {error or type(error).__name__}") from error
        finally:
            unfinished.unlink(missing_ok=True)

    def alive(self) -> bool:
        """Whether anybody answers; needs no token."""
        return self._is_well("/healthz")

    def ready(self) -> bool:
        """Whether jobs can be submitted now."""
        return self._is_well("/readyz")

    def _is_well(self, path: str) -> bool:
        try:
            self._ask("GET", path)
        except (ServiceRefused, ServiceUnreachable):
            return False
        return True

    def wait(
        self,
        job_id: str,
        *,
        timeout_s: float | None = None,
        poll_s: float = 0.5,
        seen: Callable[[RemoteJob], None] = lambda _job: None,
    ) -> RemoteJob:
        """The job once it has ended. Raises `TimeoutError`. `seen` is called with every answer."""
        give_up = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            job = self.show(job_id)
            seen(job)
            if job.ended:
                return job
            if give_up is not None and time.monotonic() > give_up:
                raise TimeoutError(f"{job_id} is still {job.state} after {timeout_s:g} s")
            time.sleep(poll_s)

    def _rows(self, job_id: str, kind: str, parameters: Mapping[str, Any], after_step: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        following: int | None = after_step
        while following is not None:
            path = f"/api/v1/jobs/{_segment(job_id)}/{kind}"
            answer = self._ask("GET", path, params={**parameters, "after_step": following}).json()
            rows += answer["items"]
            following = answer["next_after_step"]
        return rows

    def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        given = {key: value for key, value in (params or {}).items() if value is not None}
        try:
            answer = self._http.request(method, path, params=given, json=json, headers=headers)
        except (httpx2.TransportError, httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise ServiceUnreachable(f"no service answers at {self.url}: {error or type(error).__name__}") from error
        if answer.is_error:
            raise _refused(answer)
        return answer


def _refused(answer: httpx2.Response) -> ServiceRefused:
    try:
        problem = answer.json()
        code, detail, errors = problem["code"], problem["detail"], problem.get("errors", ())
    except (ValueError, KeyError, TypeError):  # not our service, or something between it and us
        return ServiceRefused(answer.status_code, "unknown", f"the answer was {answer.status_code}, and no problem")
    return ServiceRefused(answer.status_code, code, detail, errors)


def _segment(job_id: str) -> str:
    """An id as a part of a path, whatever the user typed."""
    return quote(job_id, safe="")
