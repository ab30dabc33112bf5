"""Errors."""

from __future__ import annotations

from pydantic import BaseModel

from jobs.routes.shapes.examples import example


class BadKey(BaseModel):
    """One thing wrong with a request."""

    model_config = example({"path": "method.kind", "message": "unknown kind 'sollo'", "allowed": ["solo"]})

    path: str
    message: str
    allowed: list[str]


class ProblemDetails(BaseModel):
    """An error, as RFC 9457 has it."""

    model_config = example(
        {
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "code": "no_such_job",
            "detail": "there is no job with this id; GET /api/v1/jobs lists them",
            "request_id": "5f0c3a7e9b1d4e6f8a2b4c6d8e0f1a2b",
        }
    )

    type: str
    title: str
    status: int
    code: str
    """Stable, for programs."""
    detail: str
    """One sentence, for people."""
    request_id: str | None = None
    errors: list[BadKey] | None = None
