"""Routes that show jobs and the queue."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from codistill.spec import NAME_PATTERN
from codistill.spec_errors import Problem
from jobs.kept_answers import KEEP
from jobs.problems import ApiProblem
from jobs.queue import in_turn
from jobs.routes import shapes
from jobs.routes.backend import Backend, Reader
from jobs.status import RESERVING, State
from jobs.store_terms import Filter
from jobs.views import rfc3339

SHOWN_MS = 500
"""For which what is told of a job may be told again: its replicas tell of themselves no more often."""
MAX_INTEGER = 2**63 - 1
"""What a database and a table can compare with."""


def reading_routes(backend: Backend) -> APIRouter:
    """List, show, queue, usage."""
    router = APIRouter(prefix="/api/v1", tags=["jobs"])

    @router.get("/jobs", response_model=shapes.JobPage)
    def list_jobs(  # pyright: ignore[reportUnusedFunction]
        caller: Reader,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        cursor: Annotated[int | None, Query(ge=1, le=MAX_INTEGER, description="next_cursor of the page before")] = None,
        state: Annotated[list[State] | None, Query(description="In any of these")] = None,
        label: Annotated[list[str] | None, Query(description="KEY=VALUE; all of them", examples=["team=a"])] = None,
        owner: Annotated[str | None, Query(max_length=63)] = None,
        name: Annotated[str | None, Query(max_length=63)] = None,
        parent: Annotated[str | None, Query(max_length=63)] = None,
        created_from: datetime | None = None,
        created_before: datetime | None = None,
    ) -> JSONResponse:
        """Jobs, newest first."""
        only = Filter(
            owner=owner if caller.sees is None else caller.sees,
            states=state or (),
            labels=dict(map(_key_and_value, label or ())),
            name=name,
            parent=parent,
            created_from=_seconds(created_from),
            created_before=_seconds(created_before),
        )
        found = backend.store.page(limit=limit + 1, before_seq=cursor, only=only)
        following = found[limit - 1].seq if len(found) > limit else None
        return JSONResponse({"items": backend.summaries(found[:limit]), "next_cursor": following})

    @router.get("/jobs/{job_id}", response_model=shapes.Job)
    def show(job_id: str, caller: Reader) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """Everything known about a job; up to half a second ago, where the request does not say Cache-Control:
        no-cache."""
        return JSONResponse(backend.show(backend.find(caller, job_id)), headers={KEEP: str(SHOWN_MS)})

    @router.get("/queue", response_model=shapes.Queue)
    def queue(caller: Reader) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """Who waits, in the order in which they will be admitted, and what is reserved."""
        queued, holding = backend.store.standings([State.QUEUED]), backend.store.standings(RESERVING)
        nodes = backend.nodes()
        ordered = in_turn(queued, holding, nodes)
        places = {job.id: place for place, job in enumerate(ordered, start=1)}
        seen = [job for job in ordered if caller.sees in (None, job.owner)]
        total = {"cpus": sum(node.cpus for node in nodes), "gpus": sum(node.gpus for node in nodes)}
        reserved = {
            "cpus": sum(job.ranks * job.cpus for job in holding),
            "gpus": sum(job.ranks * job.gpus for job in holding),
        }
        items: list[dict[str, Any]] = [
            {"id": job.id, "name": job.name, "priority": job.priority, "position": places[job.id]} for job in seen
        ]
        return JSONResponse({"items": items, "waiting": len(queued), "total": total, "reserved": reserved})

    @router.get("/usage", response_model=shapes.Usages)
    def usage(  # pyright: ignore[reportUnusedFunction]
        caller: Reader,
        owner: Annotated[str | None, Query(max_length=63, pattern=NAME_PATTERN)] = None,
        created_from: datetime | None = None,
        created_before: datetime | None = None,
    ) -> JSONResponse:
        """CPU-hours and GPU-hours that jobs submitted in that time have reserved until now, by owner; jobs that have
        been deleted since count."""
        found = backend.store.usage(
            owner if caller.sees is None else caller.sees,
            created_from=_seconds(created_from),
            created_before=_seconds(created_before),
        )
        return JSONResponse({"items": [one.as_json() for one in found], "as_of": rfc3339(backend.store.now())})

    return router


def _seconds(when: datetime | None) -> float | None:
    """Since the epoch; a time without a zone is in UTC."""
    if when is None:
        return None
    aware = when.replace(tzinfo=UTC) if when.tzinfo is None else when
    return (aware - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()


def _key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        problem = Problem("query.label", f"{text!r} is not KEY=VALUE")
        raise ApiProblem(422, "bad_parameter", str(problem), [problem])
    return key, value
