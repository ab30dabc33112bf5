"""Routes to what a job leaves: models, predictions, records."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from jobs.artifacts import artifacts_of
from jobs.problems import ApiProblem
from jobs.routes import shapes
from jobs.routes.backend import Backend, Reader
from jobs.views import replica_names

_FILE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": {"application/octet-stream": {}}},
    206: {"description": "The range asked for", "content": {"application/octet-stream": {}}},
    304: {"description": "Whoever asks has it already"},
    400: {"description": "No range can be read out of the header", "content": {"text/plain": {}}},
    416: {"description": "The file has no such range", "content": {"text/plain": {}}},
}


def artifact_routes(backend: Backend) -> APIRouter:
    """List, and download."""
    router = APIRouter(prefix="/api/v1/jobs/{job_id}/artifacts", tags=["artifacts"])

    @router.get("", response_model=shapes.Artifacts)
    def artifacts(job_id: str, caller: Reader) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """Exported models, predictions, results, environments, and records as Parquet."""
        job = backend.find(caller, job_id)
        found = artifacts_of(backend.run_of(job), replica_names(job))
        return JSONResponse({"items": [one.as_json() for one in found.values()]})

    @router.get("/{name:path}", response_class=Response, responses=_FILE)
    def artifact(job_id: str, name: str, request: Request, caller: Reader) -> Response:  # pyright: ignore[reportUnusedFunction]
        """One of them, streamed; ranges and If-None-Match are understood."""
        job = backend.find(caller, job_id)
        found = artifacts_of(backend.run_of(job), replica_names(job)).get(name)
        if found is None:
            raise ApiProblem(404, "no_such_artifact", "the job has no such artifact; GET .../artifacts lists them")
        stat = found.path.stat()
        tag = f'"{found.sha256 or f"{stat.st_mtime_ns:x}-{stat.st_size:x}"}"'
        headers = {"ETag": tag, "X-Content-Type-Options": "nosniff"}
        if tag in [one.strip() for one in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        return FileResponse(
            found.path, headers=headers, media_type=found.media_type, filename=found.path.name, stat_result=stat
        )

    return router
