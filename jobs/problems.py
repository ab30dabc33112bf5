"""Errors over HTTP: RFC 9457 `application/problem+json` with a stable `code`, never a traceback."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from codistill.run_dir import StorageError
from codistill.spec_errors import Problem
from jobs.errors import StoreError

log = logging.getLogger("codistill.api")


class ApiProblem(Exception):
    """An answer that is an error. `errors` names bad keys, where there are any."""

    def __init__(self, status: int, code: str, detail: str, errors: Sequence[Problem] = ()) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.errors = status, code, detail, errors


def problem_response(problem: ApiProblem, headers: dict[str, str] | None = None) -> JSONResponse:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "code": problem.code,
        "detail": problem.detail,
    }
    if problem.errors:
        body["errors"] = [error.as_json() for error in problem.errors]
    return JSONResponse(body, problem.status, headers=headers, media_type="application/problem+json")


def install_problem_handlers(app: FastAPI) -> None:
    """Make every error of `app` a problem, whatever raised it."""

    @app.exception_handler(ApiProblem)
    def _ours(_request: Request, error: ApiProblem) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return problem_response(error)

    @app.exception_handler(HTTPException)
    def _http(_request: Request, error: HTTPException) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        code = {404: "no_such_route", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        return problem_response(ApiProblem(error.status_code, code, str(error.detail)), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    def _parameters(_request: Request, error: RequestValidationError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        errors = [Problem(".".join(map(str, e["loc"])), e["msg"]) for e in error.errors()]
        return problem_response(ApiProblem(422, "bad_parameter", "; ".join(map(str, errors)), errors))

    @app.exception_handler(StoreError)
    @app.exception_handler(StorageError)
    def _storage(_request: Request, error: Exception) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        log.error("%s", error)
        code = "store_unavailable" if isinstance(error, StoreError) else "storage_unavailable"
        return problem_response(ApiProblem(503, code, str(error)))

    @app.exception_handler(Exception)
    def _unexpected(_request: Request, _error: Exception) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        # Starlette raises it again after this answer, so the operator's log has the traceback.
        detail = "the service failed while it answered; its log says why"
        return problem_response(ApiProblem(500, "internal", detail))
