"""The client of `jobs.client`, for programs that wait for many things at once: the same methods, awaited.

async with AsyncClient("http://127.0.0.1:8700") as client:
    job = await client.wait((await client.submit(spec)).id)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2

from codistill.spec import JobSpec
from jobs import conversation as say
from jobs import wire
from jobs.client import ANYTHING, DEFAULT_URL, TIMEOUT_S, Items
from jobs.conversation import Wanted
from jobs.download import incoming
from jobs.log_reader import LogReader
from jobs.patience import Patience
from jobs.status import State
from jobs.wire import Conversation, Pause, RemoteJob, ServiceRefused

if TYPE_CHECKING:
    import pyarrow as pa

Result = TypeVar("Result")


class AsyncClient:
    """One service. Methods raise `ServiceUnreachable` or `ServiceRefused`."""

    def __init__(self, url: str = DEFAULT_URL, *, token: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        self._http = httpx2.AsyncClient(**wire.settings(self.url, token, timeout_s))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def submit(self, spec: JobSpec | Mapping[str, Any], *, key: str | None = None) -> RemoteJob:
        """`key`: sent again with the same spec, it answers with the same job."""
        return await self._hold(say.submit(spec, key))

    async def validate(self, spec: JobSpec | Mapping[str, Any]) -> dict[str, Any]:
        """What the service makes of a spec, without a job: every default filled in."""
        return await self._hold(say.validate(spec))

    async def list(
        self,
        *,
        limit: int = 50,
        cursor: int | None = None,
        state: State | None = None,
        wanted: Wanted = ANYTHING,
    ) -> dict[str, Any]:
        """A page: {items, next_cursor}, newest first. `state` is short for `Wanted(states=[state])`."""
        return await self._hold(say.page(wanted if state is None else replace(wanted, states=[state]), limit, cursor))

    async def every(self, wanted: Wanted = ANYTHING) -> Items:
        """The items of all pages, newest first."""
        return await self._hold(say.every(wanted))

    async def show(self, job_id: str) -> RemoteJob:
        return await self._hold(say.show(job_id))

    async def cancel(self, job_id: str) -> RemoteJob:
        return await self._hold(say.cancel(job_id))

    async def set_priority(self, job_id: str, priority: int) -> RemoteJob:
        """Of a job that waits; from -100 to 100, the higher before the lower."""
        return await self._hold(say.set_priority(job_id, priority))

    async def delete(self, job_id: str) -> None:
        """A job that has ended, with its run directory."""
        return await self._hold(say.delete(job_id))

    async def resume(
        self, job_id: str, changes: Mapping[str, Any] | None = None, *, key: str | None = None
    ) -> RemoteJob:
        """A new job that goes on with the same training. `changes` is a part of a spec; the same `key` is the same
        job."""
        return await self._hold(say.go_on(job_id, "resume", changes, key))

    async def fork(self, job_id: str, changes: Mapping[str, Any] | None = None, *, key: str | None = None) -> RemoteJob:
        """A new job that begins another training from the newest checkpoints."""
        return await self._hold(say.go_on(job_id, "fork", changes, key))

    async def queue(self) -> dict[str, Any]:
        """Who waits, in turn, and what is reserved: {items, waiting, total, reserved}."""
        return await self._hold(say.queue())

    async def usage(
        self, *, owner: str | None = None, created_from: str | None = None, created_before: str | None = None
    ) -> dict[str, Any]:
        """CPU-hours and GPU-hours that jobs submitted in that time have reserved: {items: [{owner, jobs, cpu_hours,
        gpu_hours}], as_of}. Times as RFC 3339 has them."""
        return await self._hold(say.usage(owner, created_from, created_before))

    async def logs(
        self, job_id: str, *, replica: str = "replica-0", tail: int | None = None, offset: int | None = None
    ) -> tuple[str, int]:
        """A piece of a log and the offset after it."""
        return await self._hold(say.logs(job_id, replica, tail, offset))

    async def follow_logs(
        self, job_id: str, write: Callable[[str], None], *, replica: str = "replica-0", tail: int | None = None
    ) -> None:
        """Call `write` with what a log has, and with what is added to it, until the job has ended."""
        reader, patience, ended = LogReader(replica, tail), Patience(), False
        while not ended:
            try:
                ended = (await self.show(job_id)).ended
                patience.heard()
                async with self._http.stream("GET", **reader.request(job_id)) as answer:
                    if answer.is_error:
                        await answer.aread()
                    reader.begin(wire.checked(answer).headers)
                    patience.answered()
                    async for chunk in answer.aiter_bytes():
                        write(reader.text(chunk))
            except wire.FAILED as error:  # the service may be about to come back
                ended = False
                await asyncio.sleep(patience.pause_s(wire.told(self.url, error)))

    async def metrics(
        self, job_id: str, *, replica: str = "replica-0", names: Iterable[str] | None = None, after_step: int = -1
    ) -> Items:
        """All rows of steps above `after_step`, each (step, name) once."""
        return await self._hold(say.rows(job_id, "metrics", replica, names, after_step))

    async def metrics_table(
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
        return await self._hold(say.table(job_id, "metrics", replica, names, after_step, max_points))

    async def ledger_table(
        self, job_id: str, *, replica: str = "replica-0", after_step: int = -1, max_points: int | None = None
    ) -> pa.Table:
        """Who taught `replica` in which step, and how stale, as an Arrow table."""
        return await self._hold(say.table(job_id, "ledger", replica, None, after_step, max_points))

    async def ledger(self, job_id: str, *, replica: str = "replica-0", after_step: int = -1) -> Items:
        """Who taught `replica` in which step, and how stale."""
        return await self._hold(say.rows(job_id, "ledger", replica, None, after_step))

    async def methods(self) -> Items:
        """What `method.kind` may be: {name, idea, paper, spec, defaults, options} each."""
        return await self._hold(say.methods())

    async def recipes(self) -> Items:
        """What `recipe` may be: {name, idea, paper, spec, defaults, options} each."""
        return await self._hold(say.recipes())

    async def datasets(self) -> dict[str, Any]:
        """Data sets that a recipe can name: {items, unreadable}."""
        return await self._hold(say.datasets())

    async def models(self, *, limit: int = 50, cursor: int | None = None) -> dict[str, Any]:
        """Models that can be a teacher, of `limit` jobs: {items, registered, next_cursor}."""
        return await self._hold(say.models(limit, cursor))

    async def schema(self) -> dict[str, Any]:
        """The JSON Schema of a spec."""
        return await self._hold(say.schema())

    async def version(self) -> dict[str, Any]:
        """Of the service and of its interface."""
        return await self._hold(say.version())

    async def artifacts(self, job_id: str) -> Items:
        """What a job has left: {name, bytes, sha256, media_type} each."""
        return await self._hold(say.artifacts(job_id))

    async def download(self, job_id: str, artifact: Mapping[str, Any], target: Path) -> None:
        """Write one of `artifacts` to `target`, whole or not at all. Raises `DownloadDiffers`, and `OSError`."""
        try:
            async with self._http.stream("GET", say.artifact_path(job_id, artifact)) as answer:
                if answer.is_error:
                    await answer.aread()
                wire.checked(answer)
                with incoming(artifact, target) as file:
                    async for chunk in answer.aiter_bytes():
                        file.write(chunk)
        except wire.NO_ANSWER as error:
            raise wire.unreachable(self.url, error) from error

    async def alive(self) -> bool:
        """Whether anybody answers; needs no token."""
        return await self._hold(say.is_well("/healthz"))

    async def ready(self) -> bool:
        """Whether jobs can be submitted now."""
        return await self._hold(say.is_well("/readyz"))

    async def wait(
        self,
        job_id: str,
        *,
        timeout_s: float | None = None,
        poll_s: float = wire.POLL_S,
        seen: Callable[[RemoteJob], None] = lambda _job: None,
    ) -> RemoteJob:
        """The job once it has ended. Raises `TimeoutError`. `seen` is called with every answer. Once there was one, a
        service that is away for less than a minute is waited for."""
        return await self._hold(say.wait(job_id, timeout_s, poll_s, seen))

    async def _hold(self, conversation: Conversation[Result]) -> Result:
        try:
            step = next(conversation)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = next(conversation)
                    continue
                try:
                    answer = wire.checked(await self._http.request(**wire.request_of(step)))
                except wire.NO_ANSWER as error:
                    step = conversation.throw(wire.unreachable(self.url, error))
                except ServiceRefused as error:
                    step = conversation.throw(error)
                else:
                    step = conversation.send(answer)
        except StopIteration as end:
            return end.value
