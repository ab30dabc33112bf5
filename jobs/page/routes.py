"""The pages. Each is the same for everybody: what it shows, its scripts ask of `/api/v1`, with a token where one is
needed. So a page needs no token itself, which a browser could not send with the address of a page."""

from __future__ import annotations

from collections.abc import MutableMapping
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from codistill.lineage import FORK, RESUME

HERE = Path(__file__).parent
HEADERS = {
    # Nothing is loaded from, sent to, or shown within another origin, and no script stands in a page itself.
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_routes(*, needs_token: bool) -> APIRouter:
    """Jobs, one job, several side by side, studies, one study, queue, submit."""
    router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

    @router.get("/")
    def jobs() -> HTMLResponse:  # pyright: ignore[reportUnusedFunction]
        return page("jobs", needs_token=needs_token)

    @router.get("/jobs/{job_id}")
    def job(job_id: str) -> HTMLResponse:  # pyright: ignore[reportUnusedFunction]
        # Whether there is such a job, the script finds out: the page must not tell.
        return page("job", needs_token=needs_token)

    @router.get("/compare")
    def compare() -> HTMLResponse:  # pyright: ignore[reportUnusedFunction]
        return page("compare", needs_token=needs_token)

    @router.get("/studies")
    def studies() -> HTMLResponse:  # pyright: ignore[reportUnusedFunction]
        return page("studies", needs_token=needs_token)

    @router.get("/studies/{name}")
    def study(name: str) -> HTMLResponse:  # pyright: ignore[reportUnusedFunction]
        return page("study", needs_token=needs_token)

    @router.get("/queue")
    def queue() -> HTMLResponse:  # pyright: ignore[reportUnusedFunction]
        return page("queue", needs_token=needs_token)

    @router.get("/submit")
    def submit() -> HTMLResponse:  # pyright: ignore[reportUnusedFunction]
        return page("submit", needs_token=needs_token)

    return router


@cache
def _templates() -> Environment:
    return Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined)


@cache
def _text(name: str, needs_token: bool) -> str:
    template = _templates().get_template(f"{name}.html")
    return template.render(view=name, needs_token=needs_token, may_change={"resume": RESUME, "fork": FORK})


def page(name: str, *, needs_token: bool) -> HTMLResponse:
    """The shell of one view."""
    return HTMLResponse(_text(name, needs_token), headers=HEADERS)


class PageFiles(StaticFiles):
    """Scripts and styles, under the same rules as the pages."""

    async def get_response(self, path: str, scope: MutableMapping[str, Any]) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def static_files() -> ASGIApp:
    """What lies in `static/`, packed for whoever unpacks it."""
    return GZipMiddleware(PageFiles(directory=HERE / "static"), minimum_size=1000)
