"""Routes about the service itself: whether it is well, its version, the schema of a spec."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

import codistill
from codistill.spec import JobSpec
from jobs.problems import ApiProblem
from jobs.routes import shapes
from jobs.routes.backend import Backend, Reader
from jobs.storage import check_storage


def fact_routes(backend: Backend) -> APIRouter:
    """Health, readiness, version, schema."""
    router = APIRouter(tags=["service"])

    @router.get("/healthz", response_model=shapes.Status)
    async def healthz() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        """That somebody is there; open to everybody."""
        return {"status": "ok"}

    @router.get("/readyz", response_model=shapes.Status)
    def readyz(caller: Reader) -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        """Whether jobs can be submitted and would be run."""
        check_storage(backend.storage)
        if not backend.store.lease.is_held():
            raise ApiProblem(503, "no_manager", "no manager is at work yet; try again in a few seconds")
        if not backend.nodes():
            raise ApiProblem(503, "no_nodes", "the cluster has no living node that takes jobs; see: ray status")
        return {"status": "ready"}

    @router.get("/version", response_model=shapes.Version)
    async def version(caller: Reader) -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        """Of the service and of its interface."""
        return {"version": codistill.__version__, "api": "v1"}

    @router.get("/api/v1/schema", response_model=dict[str, Any])
    def schema(caller: Reader) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """The JSON Schema of a spec."""
        return JSONResponse(_schema())

    return router


@cache
def _schema() -> dict[str, Any]:
    # Always the same, and slow to make.
    return JobSpec.model_json_schema()
