"""Routes to what a job writes: logs, metrics, ledger, and how much its models disagree in the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, PlainTextResponse

from codistill.spec import replica_name
from codistill.spec_errors import Problem
from jobs.disagreement import disagreement_of
from jobs.job import Job
from jobs.logs import DRIVER, read_log
from jobs.problems import ApiProblem
from jobs.routes import shapes
from jobs.routes.backend import Backend, Reader
from jobs.rows import read_rows
from jobs.views import replica_names

Name = Annotated[str, Query(max_length=80, examples=["replica-0"])]
AfterStep = Annotated[int, Query(ge=-1, le=2**63 - 1, description="Only rows of later steps")]
MaxPoints = Annotated[
    int | None,
    Query(
        ge=4,
        le=100_000,
        description="At most so many rows of each series: of each stretch the least, the greatest and the last value,"
        " and the first that is no number. 'thinned' says when rows were left out.",
    ),
]


def record_routes(backend: Backend) -> APIRouter:
    """Logs, metrics, ledger."""
    router = APIRouter(prefix="/api/v1/jobs/{job_id}", tags=["records"])

    @router.get("/logs", response_class=PlainTextResponse)
    def logs(  # pyright: ignore[reportUnusedFunction]
        job_id: str,
        caller: Reader,
        replica: Name = "replica-0",
        tail: Annotated[int | None, Query(ge=0, le=100_000, description="Only the last lines")] = None,
        offset: Annotated[int | None, Query(ge=0, le=1 << 62, description="Where to go on")] = None,
    ) -> PlainTextResponse:
        """What a replica, or the driver, has written, over all attempts; the header Codistill-Next-Offset says where to
        go on."""
        job = backend.find(caller, job_id)
        check_replica(job, replica, also=(DRIVER,))
        piece = read_log(backend.run_of(job), replica, tail_lines=tail, offset=offset)
        return PlainTextResponse(piece.text, headers={"Codistill-Next-Offset": str(piece.next_offset)})

    @router.get("/metrics", response_model=shapes.Rows)
    def metrics(  # pyright: ignore[reportUnusedFunction]
        job_id: str,
        caller: Reader,
        replica: Name = "replica-0",
        names: Annotated[str | None, Query(max_length=4096, examples=["train/loss,eval/accuracy"])] = None,
        after_step: AfterStep = -1,
        max_points: MaxPoints = None,
    ) -> JSONResponse:
        """Values by step and name, each once."""
        wanted = None if names is None else {name.strip() for name in names.split(",")}
        job = backend.find(caller, job_id)
        check_replica(job, replica)
        run = backend.run_of(job)
        rows = read_rows(run, replica, "metrics", after_step=after_step, names=wanted, max_points=max_points)
        return JSONResponse(rows)

    @router.get("/ledger", response_model=shapes.LedgerRows)
    def ledger(  # pyright: ignore[reportUnusedFunction]
        job_id: str,
        caller: Reader,
        replica: Name = "replica-0",
        after_step: AfterStep = -1,
        max_points: MaxPoints = None,
    ) -> JSONResponse:
        """Who taught the replica in which step, and how stale that was."""
        job = backend.find(caller, job_id)
        check_replica(job, replica)
        run = backend.run_of(job)
        return JSONResponse(read_rows(run, replica, "ledger", after_step=after_step, max_points=max_points))

    @router.get("/disagreement", response_model=shapes.Disagreement)
    def disagreement(job_id: str, caller: Reader) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """How often two replicas of the job predict different classes on the test set, once they have ended."""
        job = backend.find(caller, job_id)
        names = [replica_name(index) for index in range(job.spec.replicas.count)]
        return JSONResponse(disagreement_of(backend.run_of(job), job.fence, names))

    return router


def check_replica(job: Job, replica: str, also: Sequence[str] = ()) -> None:
    """Raise `ApiProblem` unless the job has such a replica."""
    known = (*replica_names(job), *also)
    if replica not in known:
        problem = Problem("replica", f"the job has no such replica; it has {', '.join(known)}", known)
        raise ApiProblem(404, "no_such_replica", str(problem), [problem])
