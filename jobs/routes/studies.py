"""Routes to studies: which there are, and what one shows."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse

from jobs.callers import Caller
from jobs.job import Job
from jobs.problems import ApiProblem
from jobs.routes import shapes
from jobs.routes.backend import Backend, Reader
from jobs.store_terms import Filter
from jobs.studies import MOST_JOBS, Reports, is_of_a_study, trials_in
from jobs.views import finite

ArmName = Annotated[str | None, Query(max_length=63, description="What the others are set against")]


def study_routes(backend: Backend) -> APIRouter:
    """List, show."""
    router = APIRouter(prefix="/api/v1", tags=["studies"])
    reports = Reports(backend.storage, backend.facts)

    def jobs_of(caller: Caller, name: str | None) -> list[Job]:
        only = Filter(owner=caller.sees, labels={} if name is None else {"study": name})
        return [job for job in backend.store.page(limit=MOST_JOBS, only=only) if is_of_a_study(job)]

    @router.get("/studies", response_model=shapes.Studies)
    def studies(caller: Reader) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """Studies among the newest jobs, newest first."""
        found: dict[str, list[Job]] = {}
        for job in jobs_of(caller, None):
            found.setdefault(job.labels["study"], []).append(job)
        items = [
            {"name": name, "jobs": len(jobs), "ended": sum(job.ended_at is not None for job in jobs)}
            for name, jobs in found.items()
        ]
        return JSONResponse({"items": items})

    @router.get("/studies/{name}", response_model=shapes.Study)
    def study(  # pyright: ignore[reportUnusedFunction]
        caller: Reader,
        name: Annotated[str, Path(max_length=63)],
        baseline: ArmName = None,
    ) -> JSONResponse:
        """Its jobs; and arms side by side, as far as jobs have ended well."""
        trials = trials_in(jobs_of(caller, name))
        if not trials:
            raise ApiProblem(404, "no_such_study", "no job has this study as a label; GET /api/v1/studies lists them")
        arms = list(dict.fromkeys(trial.arm for trial, _ in trials))
        against = baseline or ("solo" if "solo" in arms else arms[0])
        if against not in arms:
            detail = f"there is no arm '{against}' in it; choose one of {', '.join(arms)}"
            raise ApiProblem(422, "bad_parameter", detail)
        report = reports.of(name, trials, against)
        jobs = [
            {"arm": trial.arm, "choice": trial.choice, "seed": trial.seed, "id": job.id, "state": job.state.value}
            for trial, job in trials
        ]
        known = not isinstance(report, str)
        value = {"name": name, "jobs": jobs, "report": report if known else None, "why": None if known else report}
        return JSONResponse(finite(value))

    return router
