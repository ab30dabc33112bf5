"""Server-sent events: changes of state, and how far jobs are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent

from jobs.job import Change, Job
from jobs.routes.backend import Backend, Reader
from jobs.status import RESERVING, TERMINAL
from jobs.views import finite, progress, transition_view

LastId = Annotated[
    int | None,
    Header(alias="Last-Event-ID", ge=0, le=2**63 - 1, description="id of the last event that was seen"),
]
PER_LOOK = 200
"""Jobs whose progress is told at most."""


def event_routes(backend: Backend) -> APIRouter:
    """Of one job, and of all."""
    router = APIRouter(prefix="/api/v1", tags=["events"])

    async def visible(job_id: str, caller: Reader) -> Job:
        # Before the stream begins: an answer that has begun can no longer be a 404.
        return await asyncio.to_thread(backend.find, caller, job_id)

    @router.get("/jobs/{job_id}/events", response_class=EventSourceResponse)
    async def of_a_job(  # pyright: ignore[reportUnusedFunction]
        job: Job = Depends(visible),  # noqa: B008  an annotation could not name what is defined here
        last_event_id: LastId = None,
    ) -> AsyncIterator[ServerSentEvent]:
        """`state` for each change of the job's state, from the first on or after Last-Event-ID, and `progress`
        whenever that has moved. Ends with the job, or after a minute; come back then with Last-Event-ID."""

        def look(after: int) -> Look:
            now = backend.store.get(job.id)
            return Look(backend.store.changes(after, job_id=job.id), [now] if now else [], now is None or _ended(now))

        async for event in stream(backend, look, last_event_id or 0):
            yield event

    @router.get("/events", response_class=EventSourceResponse)
    async def of_all(caller: Reader, last_event_id: LastId = None) -> AsyncIterator[ServerSentEvent]:  # pyright: ignore[reportUnusedFunction]
        """The same of every job that the caller sees, from now on or after Last-Event-ID, until a minute has passed."""

        def look(after: int) -> Look:
            holding = backend.store.in_states(RESERVING)
            seen = [job for job in holding if caller.sees in (None, job.owner)][:PER_LOOK]
            return Look(backend.store.changes(after, owner=caller.sees), seen, ended=False)

        start = await asyncio.to_thread(backend.store.newest_change) if last_event_id is None else last_event_id
        async for event in stream(backend, look, start):
            yield event

    return router


@dataclass(frozen=True)
class Look:
    """What is to be seen at a moment."""

    changes: Sequence[Change]
    jobs: Sequence[Job]
    """Whose progress is told."""
    ended: bool
    """Whether nothing can follow."""


async def stream(backend: Backend, look: Callable[[int], Look], after: int) -> AsyncIterator[ServerSentEvent]:
    """Events until nothing can follow or the stream has lasted long enough; at least one look."""
    give_up = time.monotonic() + backend.events.stream_s
    told: dict[str, Any] = {}
    while True:
        seen = await asyncio.to_thread(look, after)
        for change in seen.changes:
            after = change.seq
            yield state_event(change)
        for job in seen.jobs:
            value = await asyncio.to_thread(progress_of, backend, job)
            if told.get(job.id) != value:
                told[job.id] = value
                yield ServerSentEvent(event="progress", data=value)
        if seen.ended or time.monotonic() >= give_up:
            return
        await asyncio.sleep(backend.events.poll_s)


def state_event(change: Change) -> ServerSentEvent:
    """Numbered, so that a listener can go on after it."""
    data = {"job": change.job_id, **transition_view(change.transition)}
    return ServerSentEvent(event="state", id=str(change.seq), data=data)


def progress_of(backend: Backend, job: Job) -> dict[str, Any]:
    """The job's state, and its progress out of the heartbeats. The state again, for whoever missed its change."""
    beats = backend.run_of(job).read_heartbeats(job.fence) if job.fence else {}
    return finite({"job": job.id, "state": job.state.value, **progress(job, beats)})


def _ended(job: Job) -> bool:
    return job.state in TERMINAL
