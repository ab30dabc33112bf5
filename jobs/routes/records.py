"""Routes to what a job writes: logs, metrics, ledger, and how much its models disagree in the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from codistill.run_dir import RunDir
from codistill.spec import replica_name
from codistill.spec_errors import Problem
from jobs.disagreement import disagreement_of
from jobs.job import Job
from jobs.logs import DRIVER, read_log
from jobs.media import ARROW
from jobs.problems import ApiProblem
from jobs.routes import shapes
from jobs.routes.backend import Backend, Reader
from jobs.routes.log_stream import followed
from jobs.rows import RowsWanted, read_arrow, read_rows
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


_ALSO_ARROW: dict[int | str, dict[str, Any]] = {
    200: {"content": {ARROW: {"schema": {"type": "string", "format": "binary"}}}}
}


def record_routes(backend: Backend) -> APIRouter:
    """Logs, metrics, ledger."""
    router = APIRouter(prefix="/api/v1/jobs/{job_id}", tags=["records"])

    @router.get("/logs", response_class=PlainTextResponse)
    def logs(  # pyright: ignore[reportUnusedFunction]
        job_id: str,
        request: Request,
        caller: Reader,
        replica: Name = "replica-0",
        tail: Annotated[int | None, Query(ge=0, le=100_000, description="Only the last lines")] = None,
        offset: Annotated[int | None, Query(ge=0, le=1 << 62, description="Where to go on")] = None,
        follow: Annotated[bool, Query(description="Go on with what is added, until the job ends")] = False,
    ) -> Response:
        """What a replica, or the driver, has written, over all attempts; the header Codistill-Next-Offset says where to
        go on. With `follow`, the answer goes on with what is added until the job has ended, or for a minute: come back
        then with the sum of the header Codistill-Offset, where the answer begins, and the bytes that came."""
        job = backend.find(caller, job_id)
        check_replica(job, replica, also=(DRIVER,))
        piece = read_log(backend.run_of(job), replica, tail_lines=tail, offset=offset)
        if not follow:
            return PlainTextResponse(piece.text, headers={"Codistill-Next-Offset": str(piece.next_offset)})
        more = followed(backend, job, replica, piece, request.is_disconnected)
        headers = {"Codistill-Offset": str(piece.next_offset - len(piece.data)), "X-Content-Type-Options": "nosniff"}
        return StreamingResponse(more, headers=headers, media_type="text/plain; charset=utf-8")

    @router.get("/metrics", response_model=shapes.Rows, responses=_ALSO_ARROW)
    def metrics(  # pyright: ignore[reportUnusedFunction]
        job_id: str,
        request: Request,
        caller: Reader,
        replica: Name = "replica-0",
        names: Annotated[str | None, Query(max_length=4096, examples=["train/loss,eval/accuracy"])] = None,
        after_step: AfterStep = -1,
        max_points: MaxPoints = None,
    ) -> Response:
        """Values by step and name, each once; as an Arrow stream of all at once to whoever asks for that (Accept)."""
        wanted = None if names is None else frozenset(name.strip() for name in names.split(","))
        job = backend.find(caller, job_id)
        check_replica(job, replica)
        rows = RowsWanted(replica, "metrics", after_step, wanted, max_points)
        return answer(request, backend.run_of(job), rows)

    @router.get("/ledger", response_model=shapes.LedgerRows, responses=_ALSO_ARROW)
    def ledger(  # pyright: ignore[reportUnusedFunction]
        job_id: str,
        request: Request,
        caller: Reader,
        replica: Name = "replica-0",
        after_step: AfterStep = -1,
        max_points: MaxPoints = None,
    ) -> Response:
        """Who taught the replica in which step, and how stale that was; or as an Arrow stream."""
        job = backend.find(caller, job_id)
        check_replica(job, replica)
        return answer(request, backend.run_of(job), RowsWanted(replica, "ledger", after_step, max_points=max_points))

    @router.get("/disagreement", response_model=shapes.Disagreement)
    def disagreement(job_id: str, caller: Reader) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """How often two replicas of the job predict different classes on the test set, once they have ended."""
        job = backend.find(caller, job_id)
        names = [replica_name(index) for index in range(job.spec.replicas.count)]
        return JSONResponse(disagreement_of(backend.run_of(job), job.fence, names))

    return router


def answer(request: Request, run: RunDir, wanted: RowsWanted) -> Response:
    """As the request accepts it."""
    accepted = [one.partition(";")[0].strip().lower() for one in request.headers.get("accept", "").split(",")]
    vary = {"Vary": "Accept"}
    if ARROW in accepted:
        return Response(read_arrow(run, wanted), media_type=ARROW, headers=vary)
    return JSONResponse(read_rows(run, wanted), headers=vary)


def check_replica(job: Job, replica: str, also: Sequence[str] = ()) -> None:
    """Raise `ApiProblem` unless the job has such a replica."""
    known = (*replica_names(job), *also)
    if replica not in known:
        problem = Problem("replica", f"the job has no such replica; it has {', '.join(known)}", known)
        raise ApiProblem(404, "no_such_replica", str(problem), [problem])
