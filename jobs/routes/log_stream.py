"""A log that is sent on as it grows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from jobs.job import Job
from jobs.logs import LogText, read_log
from jobs.routes.backend import Backend
from jobs.status import TERMINAL


async def followed(
    backend: Backend, job: Job, replica: str, first: LogText, gone: Callable[[], Awaitable[bool]]
) -> AsyncIterator[bytes]:
    """`first`, then what follows, as bytes: a letter may be cut in two. Ends when the job has ended and all is sent,
    when nobody listens any more (`gone`), or when the stream has lasted long enough; at least one look."""
    give_up, offset = time.monotonic() + backend.events.stream_s, first.next_offset
    if first.data:
        yield first.data
    while not await gone():
        # Its state first: what was written before the end is then not missed.
        ended = await asyncio.to_thread(_ended, backend, job.id)
        piece = await asyncio.to_thread(read_log, backend.run_of(job), replica, offset=offset)
        offset = piece.next_offset
        if piece.data:
            yield piece.data
        elif ended:
            return
        if time.monotonic() >= give_up:
            return
        if not piece.data:
            await asyncio.sleep(backend.events.poll_s)


def _ended(backend: Backend, job_id: str) -> bool:
    """Or deleted."""
    job = backend.store.get(job_id)
    return job is None or job.state in TERMINAL
