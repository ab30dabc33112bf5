"""Errors over HTTP: RFC 9457 `application/problem+json` with a stable `code`, never a traceback."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from codistill.run_dir import StorageError
from codistill.spec_errors import Problem
from jobs.disks import DiskFull
from jobs.errors import StoreError

log = logging.getLogger("codistill.api")

DISK_RETRY_S = "60"
PROBLEM_TYPE = "application/problem+json"
_OF_ROUTES = {
    404: ("no_such_route", "there is no such route; GET /openapi.json lists them"),
    405: ("method_not_allowed", "this route has no such method; the header Allow names those it has"),
}


class ApiProblem(Exception):
    """An answer that is an error. `errors` names bad keys, where there are any."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        errors: Sequence[Problem] = (),
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.errors, self.headers = status, code, detail, errors, headers


def problem_response(problem: ApiProblem, request_id: str | None = None) -> JSONResponse:
    """The answer, as RFC 9457 has it, with the members `code`, `errors` and `request_id` added."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "code": problem.code,
        "detail": problem.detail,
    }
    if problem.errors:
        body["errors"] = [error.as_json() for error in problem.errors]
    if request_id is not None:
        body["request_id"] = request_id
    headers = None if problem.headers is None else dict(problem.headers)
    return JSONResponse(body, problem.status, headers=headers, media_type=PROBLEM_TYPE)


def _answer(request: Request, problem: ApiProblem) -> JSONResponse:
    return problem_response(problem, getattr(request.state, "request_id", None))


def install_problem_handlers(app: FastAPI) -> None:
    """Make every error of `app` a problem, whatever raised it."""

    @app.exception_handler(ApiProblem)
    def _ours(request: Request, error: ApiProblem) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return _answer(request, error)

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        code, detail = _OF_ROUTES.get(error.status_code, ("http_error", str(error.detail)))
        return _answer(request, ApiProblem(error.status_code, code, detail, headers=error.headers))

    @app.exception_handler(RequestValidationError)
    def _parameters(request: Request, error: RequestValidationError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        errors = [Problem(".".join(map(str, e["loc"][:2])), e["msg"]) for e in error.errors()]
        return _answer(request, ApiProblem(422, "bad_parameter", "; ".join(map(str, errors)), errors))

    @app.exception_handler(StoreError)
    @app.exception_handler(StorageError)
    def _storage(request: Request, error: Exception) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        log.error("%s", error)
        code = "store_unavailable" if isinstance(error, StoreError) else "storage_unavailable"
        # A disk has room again when somebody has made some.
        headers = {"Retry-After": DISK_RETRY_S} if isinstance(error, DiskFull) else None
        return _answer(request, ApiProblem(503, code, str(error), headers=headers))

    @app.exception_handler(Exception)
    def _unexpected(request: Request, _error: Exception) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        # Starlette raises it again after this answer, so the operator's log has the traceback.
        detail = "the service failed while it answered; try again, and see its log under this request id"
        return _answer(request, ApiProblem(500, "internal", detail))
