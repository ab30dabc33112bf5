"""The whole HTTP interface: the door, and behind it the routes and the page."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

import codistill
from jobs.door import Door
from jobs.latency import Latency
from jobs.page.routes import page_routes, static_files
from jobs.problems import PROBLEM_TYPE, install_problem_handlers
from jobs.routes import shapes
from jobs.routes.artifacts import artifact_routes
from jobs.routes.backend import Backend
from jobs.routes.catalogue import catalogue_routes
from jobs.routes.events import event_routes
from jobs.routes.facts import fact_routes
from jobs.routes.lineage import lineage_routes
from jobs.routes.prometheus import prometheus_routes
from jobs.routes.reading import reading_routes
from jobs.routes.records import record_routes
from jobs.routes.studies import study_routes
from jobs.routes.submission import submission_routes

_PROBLEM: dict[str, Any] = {
    "model": shapes.ProblemDetails,
    "description": "An error with a stable code",
    "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
}


def build_api(backend: Backend) -> FastAPI:
    """The whole HTTP interface."""
    app = FastAPI(
        title="codistill",
        version=codistill.__version__,
        docs_url=None,
        redoc_url=None,
        responses=dict.fromkeys(("4XX", "5XX"), _PROBLEM),
    )
    install_problem_handlers(app)
    for routes in (
        submission_routes,
        lineage_routes,
        reading_routes,
        record_routes,
        event_routes,
        artifact_routes,
        catalogue_routes,
        study_routes,
        fact_routes,
    ):
        app.include_router(routes(backend))
    app.include_router(page_routes(needs_token=backend.rules.needs_token))
    app.mount("/static", static_files(), name="static")
    requests = CollectorRegistry()
    app.include_router(prometheus_routes(backend, requests))
    app.add_middleware(Door, rules=backend.rules, find_token=backend.store.accounts.find)
    app.add_middleware(Latency, registry=requests)
    make_document = app.openapi

    def openapi() -> dict[str, Any]:
        document = make_document()
        # FastAPI leaves out what is null, in examples too, which then do not fit.
        for name, examples in shapes.examples_of_all().items():
            if name in document["components"]["schemas"]:
                document["components"]["schemas"][name]["examples"] = examples
        return document

    app.openapi = cache(openapi)  # FastAPI asks for it in the event loop
    return app
