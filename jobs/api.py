"""The routes: HTTP in, store and run directories behind. Nothing here starts or stops anything; the manager does.

Plain `def` routes run in threads, so that a slow disk never holds up another request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse

import codistill
from codistill.capacity import Node, demand_of, shortage
from codistill.run_dir import ID_PATTERN, RunDir
from codistill.spec import JobSpec, MemoryTransport
from codistill.spec_errors import MAX_SPEC_BYTES, Problem, SpecError, parse_spec
from jobs.job import Job, Reason
from jobs.logs import DRIVER, read_log
from jobs.problems import ApiProblem, install_problem_handlers
from jobs.rows import read_rows
from jobs.status import TERMINAL, State
from jobs.storage import check_storage
from jobs.store import LostRace, Store
from jobs.views import full, replica_names, summary

CANCEL_REASON = Reason("cancel_requested", "a user asked for it")


@dataclass(frozen=True)
class Backend:
    """What the routes stand on."""

    store: Store
    storage: Path
    nodes: Callable[[], Sequence[Node]]
    """Living nodes of the cluster."""


def build_api(backend: Backend) -> FastAPI:
    """The whole HTTP interface."""
    app = FastAPI(title="codistill", version=codistill.__version__, docs_url=None, redoc_url=None)
    install_problem_handlers(app)
    _add_submission(app, backend)
    _add_reading(app, backend)
    _add_records(app, backend)
    _add_health(app, backend)
    return app


# ---------------------------------------------------------------- submit and cancel


def _add_submission(app: FastAPI, backend: Backend) -> None:
    @app.post("/api/v1/jobs", status_code=202)
    async def submit(request: Request) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        body = await read_body(request)
        value = await asyncio.to_thread(_submit, backend, body)
        return JSONResponse(value, 202, headers={"Location": f"/api/v1/jobs/{value['id']}"})

    @app.post("/api/v1/jobs/{job_id}/cancel", status_code=202)
    def cancel(job_id: str) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return JSONResponse(_show(backend, cancel_job(backend, job_id)), 202)


async def read_body(request: Request) -> bytes:
    """The body, refused as soon as it is too long, whatever its headers claim."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_SPEC_BYTES:
            raise ApiProblem(413, "body_too_large", f"a spec has at most {MAX_SPEC_BYTES:,} bytes")
    return bytes(body)


def _submit(backend: Backend, body: bytes) -> dict[str, Any]:
    try:
        spec = parse_spec(body)
    except SpecError as error:
        raise ApiProblem(422, "bad_spec", str(error), error.problems) from None
    _refuse_impossible(spec, backend)
    check_storage(backend.storage)
    return _show(backend, backend.store.create(spec))


def _refuse_impossible(spec: JobSpec, backend: Backend) -> None:
    if isinstance(spec.exchange.transport, MemoryTransport):
        problem = Problem(
            "exchange.transport.kind",
            "'memory' works only within one process; a service needs one of auto, files, object_store",
            ("auto", "files", "object_store"),
        )
        raise ApiProblem(422, "bad_spec", str(problem), [problem])
    short = shortage(demand_of(spec), backend.nodes())
    if short is not None:
        problem = Problem("replicas", f"{short}; lower replicas.count, replicas.cpus or replicas.gpus, or add nodes")
        raise ApiProblem(422, "never_fits", str(problem), [problem])


def cancel_job(backend: Backend, job_id: str) -> Job:
    """Ask for the end of a job; asking again, or too late, changes nothing."""
    while True:
        job = _job(backend, job_id)
        if job.state in TERMINAL or job.state is State.CANCELLING:
            return job
        to = State.CANCELLED if job.state is State.QUEUED else State.CANCELLING
        try:
            return backend.store.move(job, to, reason=CANCEL_REASON)
        except LostRace:  # the manager was faster: the job is in another state now
            continue


# ---------------------------------------------------------------- read jobs


def _add_reading(app: FastAPI, backend: Backend) -> None:
    @app.get("/api/v1/jobs")
    def list_jobs(  # pyright: ignore[reportUnusedFunction]
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        cursor: Annotated[int | None, Query(ge=1)] = None,
        state: State | None = None,
    ) -> dict[str, Any]:
        found = backend.store.page(limit=limit + 1, before_seq=cursor, state=state)
        more = len(found) > limit
        return {"items": [summary(j) for j in found[:limit]], "next_cursor": found[limit - 1].seq if more else None}

    @app.get("/api/v1/jobs/{job_id}")
    def show(job_id: str) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        return _show(backend, _job(backend, job_id))


def _job(backend: Backend, job_id: str) -> Job:
    job = backend.store.get(job_id) if ID_PATTERN.fullmatch(job_id) else None
    if job is None:
        raise ApiProblem(404, "no_such_job", "there is no job with this id; GET /api/v1/jobs lists them")
    return job


def _show(backend: Backend, job: Job) -> dict[str, Any]:
    return full(job, backend.store.transitions(job.id), RunDir(backend.storage, job.id), time.time())


# ---------------------------------------------------------------- logs, metrics, ledger


def _add_records(app: FastAPI, backend: Backend) -> None:
    @app.get("/api/v1/jobs/{job_id}/logs")
    def logs(  # pyright: ignore[reportUnusedFunction]
        job_id: str,
        replica: str = "replica-0",
        tail: Annotated[int | None, Query(ge=0, le=100_000)] = None,
        offset: Annotated[int | None, Query(ge=0)] = None,
    ) -> PlainTextResponse:
        job = _job(backend, job_id)
        _check_replica(job, replica, also=(DRIVER,))
        piece = read_log(RunDir(backend.storage, job.id), replica, tail_lines=tail, offset=offset)
        return PlainTextResponse(piece.text, headers={"Codistill-Next-Offset": str(piece.next_offset)})

    @app.get("/api/v1/jobs/{job_id}/metrics")
    def metrics(  # pyright: ignore[reportUnusedFunction]
        job_id: str, replica: str = "replica-0", names: str | None = None, after_step: int = -1
    ) -> dict[str, Any]:
        wanted = None if names is None else {name.strip() for name in names.split(",")}
        job = _job(backend, job_id)
        _check_replica(job, replica)
        return read_rows(RunDir(backend.storage, job.id), replica, "metrics", after_step=after_step, names=wanted)

    @app.get("/api/v1/jobs/{job_id}/ledger")
    def ledger(  # pyright: ignore[reportUnusedFunction]
        job_id: str, replica: str = "replica-0", after_step: int = -1
    ) -> dict[str, Any]:
        job = _job(backend, job_id)
        _check_replica(job, replica)
        return read_rows(RunDir(backend.storage, job.id), replica, "ledger", after_step=after_step)


def _check_replica(job: Job, replica: str, also: Sequence[str] = ()) -> None:
    known = (*replica_names(job), *also)
    if replica not in known:
        problem = Problem("replica", f"the job has no such replica; it has {', '.join(known)}", known)
        raise ApiProblem(404, "no_such_replica", str(problem), [problem])


# ---------------------------------------------------------------- health


def _add_health(app: FastAPI, backend: Backend) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        check_storage(backend.storage)
        if not backend.store.lease_is_held():
            raise ApiProblem(503, "no_manager", "no manager is at work yet; try again in a few seconds")
        if not backend.nodes():
            raise ApiProblem(503, "no_nodes", "the cluster has no living node")
        return {"status": "ready"}

    @app.get("/version")
    async def version() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        return {"version": codistill.__version__, "api": "v1"}
