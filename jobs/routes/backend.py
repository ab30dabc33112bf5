"""What the routes stand on, and how a job is found for whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request

from codistill.capacity import Node
from codistill.data.home import data_home
from codistill.run_dir import ID_PATTERN, RunDir
from codistill.spec import JobSpec
from jobs.callers import Caller, Scope
from jobs.describer import Facts
from jobs.disks import Disks
from jobs.door import DoorRules
from jobs.job import Job
from jobs.problems import ApiProblem
from jobs.queue import positions
from jobs.status import RESERVING, State
from jobs.store import Store
from jobs.store_terms import Quota
from jobs.views import full, summary


@dataclass(frozen=True)
class EventTimes:
    """Of a stream of events."""

    poll_s: float = 1.0
    """Between two looks at the store and the heartbeats."""
    stream_s: float = 60.0
    """Then it ends, and a listener comes back with what it saw last: a token that was revoked is out by then."""


def nobody_asked(_spec: JobSpec) -> Facts | str:
    """Of a service that was given nobody who knows."""
    return "this service does not find them out; codistill validate --facts does"


@dataclass(frozen=True)
class Backend:
    """What the routes stand on."""

    store: Store
    storage: Path
    nodes: Callable[[], Sequence[Node]]
    """Living nodes of the cluster."""
    rules: DoorRules = field(default_factory=DoorRules)
    quota: Quota = field(default_factory=Quota)
    events: EventTimes = field(default_factory=EventTimes)
    facts: Callable[[JobSpec], Facts | str] = nobody_asked
    """What a spec trains, sends and takes, or why that is not known."""
    disks: Disks = field(default_factory=Disks)
    """Those that jobs fill."""
    data_home: Path = field(default_factory=data_home)
    """Where the data sets are."""

    def run_of(self, job: Job) -> RunDir:
        return RunDir(self.storage, job.id)

    def find(self, caller: Caller, job_id: str) -> Job:
        """A job that the caller may see. Raises `ApiProblem`: whose it is otherwise is not told."""
        job = self.store.get(job_id) if ID_PATTERN.fullmatch(job_id) else None
        if job is None or caller.sees not in (None, job.owner):
            raise ApiProblem(404, "no_such_job", "there is no job with this id; GET /api/v1/jobs lists them")
        return job

    def show(self, job: Job) -> dict[str, Any]:
        """Everything known about it."""
        place = self.places().get(job.id) if job.state is State.QUEUED else None
        return full(job, self.store.transitions(job.id), self.run_of(job), self.store.now(), place)

    def summaries(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        places = self.places() if any(job.state is State.QUEUED for job in jobs) else {}
        return [summary(job, places.get(job.id)) for job in jobs]

    def places(self) -> dict[str, int]:
        """Of each job that waits, by its id, its place in the queue, counted from 1."""
        queued, holding = self.store.standings([State.QUEUED]), self.store.standings(RESERVING)
        return dict(positions(queued, holding, self.nodes()))


async def caller_of(request: Request) -> Caller:
    """Whom the door let in."""
    # Async, though it waits for nothing: FastAPI would take each request to another thread for it.
    return request.state.caller


async def writer_of(request: Request) -> Caller:
    """The same, if they may change something. Raises `ApiProblem`."""
    caller = await caller_of(request)
    if not caller.scope.includes(Scope.WRITE):
        detail = f"this needs a token of scope '{Scope.WRITE}', the one sent has '{caller.scope}'; use another"
        raise ApiProblem(403, "scope", detail)
    return caller


Reader = Annotated[Caller, Depends(caller_of)]
Writer = Annotated[Caller, Depends(writer_of)]
