"""Routes that go on from a job that has ended, as a new one."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError

from codistill.inheritance import NothingToGoOnFrom, find_legacy
from codistill.lineage import Way, child_spec
from codistill.spec import JobSpec
from codistill.spec_errors import Problem, SpecError
from jobs.callers import Caller
from jobs.job import Job
from jobs.problems import ApiProblem
from jobs.routes import shapes
from jobs.routes.backend import Backend, Reader, Writer
from jobs.routes.pricing import price_of
from jobs.routes.submission import Key, add, affordable, digest_of, read_body, refuse_impossible, refuse_unknown_teacher
from jobs.status import TERMINAL
from jobs.storage import check_storage
from jobs.store_terms import Submission


class Wanted(BaseModel):
    """What is to be other than in the parent: a part of a spec."""

    model_config = {"extra": "forbid"}

    changes: dict[str, Any] = {}


def lineage_routes(backend: Backend) -> APIRouter:
    """Resume and fork, and what would come of either."""
    router = APIRouter(prefix="/api/v1/jobs/{job_id}", tags=["jobs"])
    how: dict[str, Any] = {"status_code": 202, "response_model": shapes.Job, "openapi_extra": shapes.CHANGES_BODY}
    tried: dict[str, Any] = {"response_model": shapes.Validated, "openapi_extra": shapes.CHANGES_BODY}

    @router.post("/resume", **how)
    async def resume(job_id: str, request: Request, caller: Writer, key: Key = None) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """Go on with the same training from the newest checkpoints of a job that has ended, as a new job. What leaves
        the mathematics alone may change, and training.steps upwards."""
        return await _answer(backend, caller, job_id, request, "resume", key)

    @router.post("/fork", **how)
    async def fork(job_id: str, request: Request, caller: Writer, key: Key = None) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """Begin another training from the newest checkpoints of a job that has ended. Everything may change that they
        still fit."""
        return await _answer(backend, caller, job_id, request, "fork", key)

    @router.post("/resume:validate", **tried)
    async def try_resume(job_id: str, request: Request, caller: Reader) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """Check changes as resuming would, and answer with the new job's spec and estimate."""
        return await _try(backend, caller, job_id, request, "resume")

    @router.post("/fork:validate", **tried)
    async def try_fork(job_id: str, request: Request, caller: Reader) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """Check changes as forking would, and answer with the new job's spec and estimate."""
        return await _try(backend, caller, job_id, request, "fork")

    return router


async def _try(backend: Backend, caller: Caller, job_id: str, request: Request, way: Way) -> JSONResponse:
    body = await read_body(request)
    _, spec, price = await asyncio.to_thread(_checked, backend, caller, job_id, body, way)
    return JSONResponse({"spec": spec.model_dump(mode="json"), "estimate": price})


async def _answer(
    backend: Backend, caller: Caller, job_id: str, request: Request, way: Way, key: str | None
) -> JSONResponse:
    body = await read_body(request)
    value = await asyncio.to_thread(_go_on, backend, caller, job_id, body, way, key)
    return JSONResponse(value, 202, headers={"Location": f"/api/v1/jobs/{value['id']}"})


def _go_on(backend: Backend, caller: Caller, job_id: str, body: bytes, way: Way, key: str | None) -> dict[str, Any]:
    parent, spec, price = _checked(backend, caller, job_id, body, way)
    check_storage(backend.storage)
    backend.disks.check()
    digest = digest_of(spec, way, parent.id)
    return backend.show(add(backend, Submission(spec, caller, parent.id, way, key, digest, price)))


def _checked(
    backend: Backend, caller: Caller, job_id: str, body: bytes, way: Way
) -> tuple[Job, JobSpec, dict[str, Any]]:
    """The parent, and spec and estimate of the job that would go on from it. Raises `ApiProblem`."""
    parent = backend.find(caller, job_id)
    changes = _changes(body)
    if parent.state not in TERMINAL:
        raise ApiProblem(409, "not_ended", f"the job is {parent.state}; cancel it, or wait until it has ended")
    before = parent.spec
    try:
        spec = child_spec(before, changes, way)
    except SpecError as error:
        raise ApiProblem(422, "bad_changes", str(error), error.problems) from None
    refuse_impossible(spec, backend)
    refuse_unknown_teacher(spec, backend, caller)
    try:
        reached = find_legacy(backend.run_of(parent), before, spec).steps()
    except NothingToGoOnFrom as error:
        raise ApiProblem(409, "no_checkpoint", str(error)) from None
    price = price_of(backend, caller, spec, steps_done=min(reached.values()))
    return parent, spec, affordable(price, spec, backend)


def _changes(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        return Wanted.model_validate_json(body).changes
    except ValidationError as error:
        problems = [Problem(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors()]
        says = "; ".join(map(str, problems))
        raise ApiProblem(
            422, "bad_changes", f'{says}; the body is {{"changes": {{...}}}}: send that', problems
        ) from None
