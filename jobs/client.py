"""Talking to a service from Python: a small typed client, without Ray. What it says is in `jobs.conversation`.

with Client("http://127.0.0.1:8700") as client:
    job = client.wait(client.submit(spec).id)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2

from codistill.spec import JobSpec
from jobs import conversation as say
from jobs import wire
from jobs.conversation import Wanted
from jobs.download import DownloadDiffers, incoming
from jobs.log_reader import LogReader
from jobs.patience import Patience
from jobs.serve_settings import DEFAULT_PORT
from jobs.status import State
from jobs.wire import Conversation, Pause, RemoteJob, ServiceRefused, ServiceUnreachable

__all__ = ["Client", "DownloadDiffers", "RemoteJob", "ServiceRefused", "ServiceUnreachable", "Wanted"]

if TYPE_CHECKING:
    import pyarrow as pa

DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"
TIMEOUT_S = 20.0
"""Longer than a restart of the service's processes takes: requests are held meanwhile and then answered."""
ANYTHING = Wanted()
Result = TypeVar("Result")
Items = list[dict[str, Any]]


class Client:
    """One service. Methods raise `ServiceUnreachable` or `ServiceRefused`."""

    def __init__(self, url: str = DEFAULT_URL, *, token: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        self._http = httpx2.Client(**wire.settings(self.url, token, timeout_s))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(self, spec: JobSpec | Mapping[str, Any], *, key: str | None = None) -> RemoteJob:
        """`key`: sent again with the same spec, it answers with the same job."""
        return self._hold(say.submit(spec, key))

    def validate(self, spec: JobSpec | Mapping[str, Any]) -> dict[str, Any]:
        """What the service makes of a spec, without a job: every default filled in."""
        return self._hold(say.validate(spec))

    def list(
        self,
        *,
        limit: int = 50,
        cursor: int | None = None,
        state: State | None = None,
        wanted: Wanted = ANYTHING,
    ) -> dict[str, Any]:
        """A page: {items, next_cursor}, newest first. `state` is short for `Wanted(states=[state])`."""
        return self._hold(say.page(wanted if state is None else replace(wanted, states=[state]), limit, cursor))

    def every(self, wanted: Wanted = ANYTHING) -> Items:
        """The items of all pages, newest first."""
        return self._hold(say.every(wanted))

    def show(self, job_id: str) -> RemoteJob:
        return self._hold(say.show(job_id))

    def cancel(self, job_id: str) -> RemoteJob:
        return self._hold(say.cancel(job_id))

    def set_priority(self, job_id: str, priority: int) -> RemoteJob:
        """Of a job that waits; from -100 to 100, the higher before the lower."""
        return self._hold(say.set_priority(job_id, priority))

    def delete(self, job_id: str) -> None:
        """A job that has ended, with its run directory."""
        return self._hold(say.delete(job_id))

    def resume(self, job_id: str, changes: Mapping[str, Any] | None = None, *, key: str | None = None) -> RemoteJob:
        """A new job that goes on with the same training. `changes` is a part of a spec; the same `key` is the same
        job."""
        return self._hold(say.go_on(job_id, "resume", changes, key))

    def fork(self, job_id: str, changes: Mapping[str, Any] | None = None, *, key: str | None = None) -> RemoteJob:
        """A new job that begins another training from the newest checkpoints."""
        return self._hold(say.go_on(job_id, "fork", changes, key))

    def queue(self) -> dict[str, Any]:
        """Who waits, in turn, and what is reserved: {items, waiting, total, reserved}."""
        return self._hold(say.queue())

    def usage(
        self, *, owner: str | None = None, created_from: str | None = None, created_before: str | None = None
    ) -> dict[str, Any]:
        """CPU-hours and GPU-hours that jobs submitted in that time have reserved: {items: [{owner, jobs, cpu_hours,
        gpu_hours}], as_of}. Times as RFC 3339 has them."""
        return self._hold(say.usage(owner, created_from, created_before))

    def logs(
        self, job_id: str, *, replica: str = "replica-0", tail: int | None = None, offset: int | None = None
    ) -> tuple[str, int]:
        """A piece of a log and the offset after it."""
        return self._hold(say.logs(job_id, replica, tail, offset))

    def follow_logs(
        self, job_id: str, write: Callable[[str], None], *, replica: str = "replica-0", tail: int | None = None
    ) -> None:
        """Call `write` with what a log has, and with what is added to it, until the job has ended."""
        reader, patience, ended = LogReader(replica, tail), Patience(), False
        while not ended:
            try:
                ended = self.show(job_id).ended
                patience.heard()
                with self._http.stream("GET", **reader.request(job_id)) as answer:
                    if answer.is_error:
                        answer.read()
                    reader.begin(wire.checked(answer).headers)
                    patience.answered()
                    for chunk in answer.iter_bytes():
                        write(reader.text(chunk))
            except wire.FAILED as error:  # the service may be about to come back
                ended = False
                time.sleep(patience.pause_s(wire.told(self.url, error)))

    def metrics(
        self, job_id: str, *, replica: str = "replica-0", names: Iterable[str] | None = None, after_step: int = -1
    ) -> Items:
        """All rows of steps above `after_step`, each (step, name) once."""
        return self._hold(say.rows(job_id, "metrics", replica, names, after_step))

    def metrics_table(
        self,
        job_id: str,
        *,
        replica: str = "replica-0",
        names: Iterable[str] | None = None,
        after_step: int = -1,
        max_points: int | None = None,
    ) -> pa.Table:
        """The same rows in one piece, as an Arrow table; with `max_points`, at most so many of each series: the
        schema's metadata then say `thinned`."""
        return self._hold(say.table(job_id, "metrics", replica, names, after_step, max_points))

    def ledger_table(
        self, job_id: str, *, replica: str = "replica-0", after_step: int = -1, max_points: int | None = None
    ) -> pa.Table:
        """Who taught `replica` in which step, and how stale, as an Arrow table."""
        return self._hold(say.table(job_id, "ledger", replica, None, after_step, max_points))

    def ledger(self, job_id: str, *, replica: str = "replica-0", after_step: int = -1) -> Items:
        """Who taught `replica` in which step, and how stale."""
        return self._hold(say.rows(job_id, "ledger", replica, None, after_step))

    def methods(self) -> Items:
        """What `method.kind` may be: {name, idea, paper, spec, defaults, options} each."""
        return self._hold(say.methods())

    def recipes(self) -> Items:
        """What `recipe` may be: {name, idea, paper, spec, defaults, options} each."""
        return self._hold(say.recipes())

    def datasets(self) -> dict[str, Any]:
        """Data sets that a recipe can name: {items, unreadable}."""
        return self._hold(say.datasets())

    def models(self, *, limit: int = 50, cursor: int | None = None) -> dict[str, Any]:
        """Models that can be a teacher, of `limit` jobs: {items, registered, next_cursor}."""
        return self._hold(say.models(limit, cursor))

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of a spec."""
        return self._hold(say.schema())

    def version(self) -> dict[str, Any]:
        """Of the service and of its interface."""
        return self._hold(say.version())

    def artifacts(self, job_id: str) -> Items:
        """What a job has left: {name, bytes, sha256, media_type} each."""
        return self._hold(say.artifacts(job_id))

    def download(self, job_id: str, artifact: Mapping[str, Any], target: Path) -> None:
        """Write one of `artifacts` to `target`, whole or not at all. Raises `DownloadDiffers`, and `OSError`."""
        try:
            with self._http.stream("GET", say.artifact_path(job_id, artifact)) as answer:
                if answer.is_error:
                    answer.read()
                wire.checked(answer)
                with incoming(artifact, target) as file:
                    for chunk in answer.iter_bytes():
                        file.write(chunk)
        except wire.NO_ANSWER as error:
            raise wire.unreachable(self.url, error) from error

    def alive(self) -> bool:
        """Whether anybody answers; needs no token."""
        return self._hold(say.is_well("/healthz"))

    def ready(self) -> bool:
        """Whether jobs can be submitted now."""
        return self._hold(say.is_well("/readyz"))

    def wait(
        self,
        job_id: str,
        *,
        timeout_s: float | None = None,
        poll_s: float = wire.POLL_S,
        seen: Callable[[RemoteJob], None] = lambda _job: None,
    ) -> RemoteJob:
        """The job once it has ended. Raises `TimeoutError`. `seen` is called with every answer. Once there was one, a
        service that is away for less than a minute is waited for."""
        return self._hold(say.wait(job_id, timeout_s, poll_s, seen))

    def _hold(self, conversation: Conversation[Result]) -> Result:
        try:
            step = next(conversation)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = next(conversation)
                    continue
                try:
                    answer = wire.checked(self._http.request(**wire.request_of(step)))
                except wire.NO_ANSWER as error:
                    step = conversation.throw(wire.unreachable(self.url, error))
                except ServiceRefused as error:
                    step = conversation.throw(error)
                else:
                    step = conversation.send(answer)
        except StopIteration as end:
            return end.value
