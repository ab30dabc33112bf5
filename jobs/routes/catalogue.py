"""Routes to what a spec can name: methods, recipes, data sets, models. Names and digests; no path is told or taken."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from codistill.data.catalog import Dataset, find_model, list_datasets, registry
from codistill.data.home import DataError
from codistill.run_dir import read_json
from codistill.spec import replica_name
from jobs.artifacts import artifacts_of
from jobs.job import Job
from jobs.offered import offered_methods, offered_recipes
from jobs.problems import ApiProblem
from jobs.routes import shapes
from jobs.routes.backend import Backend, Reader
from jobs.routes.reading import MAX_INTEGER
from jobs.status import TERMINAL
from jobs.store_terms import Filter
from jobs.views import finite

log = logging.getLogger("codistill.api")


def catalogue_routes(backend: Backend) -> APIRouter:
    """Methods, recipes, data sets, models."""
    router = APIRouter(prefix="/api/v1", tags=["catalogue"])

    @router.get("/methods", response_model=shapes.Offers)
    def methods(caller: Reader) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """How models can teach each other, with the options of each."""
        return JSONResponse({"items": [offer.as_json() for offer in offered_methods()]})

    @router.get("/recipes", response_model=shapes.Offers)
    def recipes(caller: Reader) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """What can be trained, with the options of each; after them, the recipes that installed packages bring."""
        return JSONResponse({"items": [offer.as_json() for offer in offered_recipes()]})

    @router.get("/datasets", response_model=shapes.Datasets)
    def datasets(caller: Reader) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """Data sets that a recipe can name."""
        try:
            found, problems = list_datasets(backend.data_home)
        except DataError as error:
            raise _unreadable(error, "data list") from None
        for problem in problems:
            log.warning("data set %s", problem)
        unreadable = [problem.partition(":")[0] for problem in problems]
        return JSONResponse({"items": [_dataset(one) for one in found], "unreadable": unreadable})

    @router.get("/models", response_model=shapes.Models)
    def models(  # pyright: ignore[reportUnusedFunction]
        caller: Reader,
        limit: Annotated[int, Query(ge=1, le=500, description="Jobs to look through")] = 50,
        cursor: Annotated[int | None, Query(ge=1, le=MAX_INTEGER, description="next_cursor of the page before")] = None,
    ) -> JSONResponse:
        """Models that can be a teacher: what the caller's jobs have left that ended, newest first, and models that the
        operator has given a name. A page may be empty and others follow."""
        only = Filter(owner=caller.sees, states=sorted(TERMINAL))
        jobs = backend.store.page(limit=limit + 1, before_seq=cursor, only=only)
        items = [model for job in jobs[:limit] for model in models_of(backend, job)]
        try:
            known = registry(backend.data_home)["models"]
        except DataError as error:
            raise _unreadable(error, "register model") from None
        registered = [_registered(backend, name) for name in sorted(known)]
        following = jobs[limit - 1].seq if len(jobs) > limit else None
        return JSONResponse({"items": items, "registered": registered, "next_cursor": following})

    return router


def models_of(backend: Backend, job: Job) -> Sequence[dict[str, Any]]:
    """Of each replica of the job itself that has left an export; a control is nobody's teacher."""
    names = [replica_name(index) for index in range(job.spec.replicas.count)]
    run = backend.run_of(job)
    left = artifacts_of(run, names)
    outcomes = ((read_json(run.result(job.fence)) if job.fence else None) or {}).get("replicas", {})
    found: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        model = left.get(f"export/{name}/model.safetensors")
        # The manifest comes last: without it the export is not whole.
        if model is None or f"export/{name}/manifest.json" not in left:
            continue
        found.append(
            {
                "job": job.id,
                "replica": name,
                "recipe": job.spec_json["recipe"]["kind"],
                "sha256": model.sha256,
                "bytes": model.num_bytes,
                "metrics": finite(outcomes.get(name, {}).get("metrics", {})),
                "spec": {"kind": "job", "job": job.id, "replica": index},
            }
        )
    return found


def _registered(backend: Backend, name: str) -> dict[str, Any]:
    """A model by its name; its digest is None where what the name stands for is not there now."""
    digest = None
    try:
        digest = (read_json(find_model(name, backend.data_home) / "manifest.json") or {})["sha256"]["model.safetensors"]
    except (DataError, OSError, ValueError, KeyError) as error:
        log.warning("model %s: %s", name, error)
    return {"name": name, "sha256": digest, "spec": {"kind": "model", "name": name}}


def _dataset(one: Dataset) -> dict[str, Any]:
    card = one.card
    return {
        "name": one.name,
        "title": card.title,
        "description": card.description,
        "licence": card.licence,
        "rows": {part: split.rows for part, split in card.splits.items()},
        "bytes": card.bytes,
        "digest": card.digest,
    }


def _unreadable(error: DataError, verb: str) -> ApiProblem:
    log.error("%s", error)
    detail = f"the list of data sets and models cannot be read; on the service's machine, codistill {verb} says why"
    return ApiProblem(503, "catalogue_unavailable", detail)
