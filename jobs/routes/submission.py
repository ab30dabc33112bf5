"""Routes that change something: submit, cancel, priority, delete. The manager starts and stops; nothing here does."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from codistill.capacity import demand_of, places, shortage
from codistill.spec import JobSpec, MemoryTransport, jobs_named
from codistill.spec_errors import Problem, SpecError, parse_spec
from jobs.callers import Caller
from jobs.door import too_often
from jobs.job import Job, Reason
from jobs.problems import ApiProblem
from jobs.routes import shapes
from jobs.routes.backend import Backend, Reader, Writer
from jobs.routes.pricing import price_of
from jobs.status import TERMINAL, State
from jobs.storage import check_storage
from jobs.store_terms import KeyConflict, LostRace, ParentGone, QueueFull, StillNeeded, StorageTaken, Submission

CANCEL_REASON = Reason("cancel_requested", "a user asked for it")
QUEUE_RETRY_S = 10.0

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Sent again with the same body, answers with the job of the first time; with another body, 422.",
    ),
]


class Priority(BaseModel):
    """Where a job stands among those that wait."""

    model_config = {"extra": "forbid", "json_schema_extra": {"examples": [{"priority": 10}]}}

    priority: int = Field(ge=-100, le=100)


def submission_routes(backend: Backend) -> APIRouter:
    """Submit, validate, cancel, priority, delete."""
    router = APIRouter(prefix="/api/v1", tags=["jobs"])

    @router.post("/jobs", status_code=202, response_model=shapes.Job, openapi_extra=shapes.SPEC_BODY)
    async def submit(request: Request, caller: Writer, key: Key = None) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """Submit a job: a spec. Answers once it is on the disk."""
        body = await read_body(request)
        value = await asyncio.to_thread(_submit, backend, caller, body, key)
        return JSONResponse(value, 202, headers={"Location": f"/api/v1/jobs/{value['id']}"})

    @router.post("/jobs:validate", response_model=shapes.Validated, openapi_extra=shapes.SPEC_BODY)
    async def validate(request: Request, caller: Reader) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """Check a spec as submitting it would, and answer with every default filled in and what it will take."""
        body = await read_body(request)
        return JSONResponse(await asyncio.to_thread(_validate, backend, caller, body))

    @router.post("/jobs/{job_id}/cancel", status_code=202, response_model=shapes.Job)
    def cancel(job_id: str, caller: Writer) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """End a job; its replicas write a last checkpoint. Asking again, or too late, changes nothing."""
        return JSONResponse(backend.show(cancel_job(backend, caller, job_id)), 202)

    @router.patch("/jobs/{job_id}", response_model=shapes.Job)
    def change(job_id: str, wanted: Priority, caller: Writer) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """Change the priority of a job that waits."""
        job = backend.find(caller, job_id)
        if job.state is not State.QUEUED:
            raise ApiProblem(
                409,
                "not_queued",
                f"the job is {job.state}; only of one that is QUEUED it matters; give the next one another",
            )
        try:
            return JSONResponse(backend.show(backend.store.set_priority(job, wanted.priority, by=caller)))
        except LostRace:
            raise ApiProblem(409, "not_queued", "the job has just been admitted; GET it to see how it is") from None

    @router.delete("/jobs/{job_id}", status_code=204)
    def delete(job_id: str, caller: Writer) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Delete a job that has ended, with its run directory."""
        job = backend.find(caller, job_id)
        if job.state not in TERMINAL:
            raise ApiProblem(409, "not_ended", f"the job is {job.state}; cancel it first, then delete it")
        try:
            backend.store.delete(job, by=caller)
        except LostRace:
            raise ApiProblem(
                404, "no_such_job", "the job has just been deleted; GET /api/v1/jobs lists those that are there"
            ) from None
        except StillNeeded as error:
            raise ApiProblem(409, "still_needed", f"{error}; cancel that one first, or wait for it") from None
        shutil.rmtree(backend.run_of(job).root, ignore_errors=True)
        return Response(status_code=204)

    return router


async def read_body(request: Request) -> bytes:
    """The whole body; the door counts its bytes as they come."""
    return b"".join([chunk async for chunk in request.stream()])


def _submit(backend: Backend, caller: Caller, body: bytes, key: str | None) -> dict[str, Any]:
    spec = accepted(backend, caller, body)
    check_storage(backend.storage)
    backend.disks.check()
    price = affordable(price_of(backend, caller, spec), spec, backend)
    return backend.show(add(backend, Submission(spec, caller, key=key, digest=digest_of(spec), estimate=price)))


def _validate(backend: Backend, caller: Caller, body: bytes) -> dict[str, Any]:
    spec = accepted(backend, caller, body)
    price = affordable(price_of(backend, caller, spec), spec, backend)
    return {"spec": spec.model_dump(mode="json"), "estimate": price}


def accepted(backend: Backend, caller: Caller, body: bytes) -> JobSpec:
    """The spec that `body` is, if this service could ever run it for the caller. Raises `ApiProblem`."""
    try:
        spec = parse_spec(body)
    except SpecError as error:
        raise ApiProblem(422, "bad_spec", str(error), error.problems) from None
    refuse_impossible(spec, backend)
    refuse_unknown_teacher(spec, backend, caller)
    return spec


def add(backend: Backend, asked: Submission) -> Job:
    """Put it into the store. Raises `ApiProblem`."""
    try:
        return backend.store.submit(asked, backend.quota)
    except KeyConflict as error:
        raise ApiProblem(422, "idempotency_conflict", f"Idempotency-Key: {error}; send another key") from None
    except QueueFull as error:
        raise too_often(f"{error}; wait, or cancel one", QUEUE_RETRY_S, code="queue_full") from None
    except StorageTaken as error:
        detail = f"{error}; delete jobs that have ended: codistill delete JOB"
        raise ApiProblem(403, "storage_quota", detail) from None
    except ParentGone as error:
        raise ApiProblem(404, "no_such_job", f"{error}; submit its spec as a new job") from None


def digest_of(spec: JobSpec, *more: str | None) -> str:
    """Of all that a request asks for."""
    return hashlib.sha256(json.dumps([spec.model_dump(mode="json"), more], sort_keys=True).encode()).hexdigest()


def refuse_impossible(spec: JobSpec, backend: Backend) -> None:
    """Raise `ApiProblem` for what can never run here."""
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


def affordable(price: dict[str, Any], spec: JobSpec, backend: Backend) -> dict[str, Any]:
    """The price, of a job whose ranks the cluster has the memory for, as far as both are known. Raises `ApiProblem`."""
    demand, nodes = demand_of(spec, price["node_bytes_per_rank"]), backend.nodes()
    short = shortage(demand, nodes)
    if short is None:
        return price
    alone = places(demand, nodes) > 0
    remedy = "lower replicas.count or replicas.ranks" if alone else "make the model or training.batch_size smaller"
    path = "replicas" if alone else "recipe"
    problem = Problem(path, f"{short}; {remedy}, let training.accumulate cut batches, or add nodes")
    raise ApiProblem(422, "never_fits", str(problem), [problem])


def refuse_unknown_teacher(spec: JobSpec, backend: Backend, caller: Caller) -> None:
    """Raise `ApiProblem` where a spec names the model of a job that the caller does not see: whose it is otherwise is
    not told. Whoever sees all may also name a run that was put into the storage by hand."""
    if caller.sees is None:
        return
    for place, teacher in jobs_named(getattr(spec.method, "teacher", None)):
        job = backend.store.get(teacher.job)
        if job is None or job.owner != caller.sees:
            problem = Problem(
                f"method.teacher.{place}", "there is no such job; GET /api/v1/models lists those that can teach"
            )
            raise ApiProblem(422, "bad_spec", str(problem), [problem])


def cancel_job(backend: Backend, caller: Caller, job_id: str) -> Job:
    """Ask for the end of a job; asking again, or too late, changes nothing."""
    while True:
        job = backend.find(caller, job_id)
        if job.state in TERMINAL or job.state is State.CANCELLING:
            return job
        to = State.CANCELLED if job.state is State.QUEUED else State.CANCELLING
        try:
            return backend.store.move(job, to, reason=CANCEL_REASON, by=caller)
        except LostRace:  # the manager was faster: the job is in another state now
            continue
