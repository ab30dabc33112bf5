"""Bodies that are parsed by us and not by the framework, so that errors name the key and what is allowed."""

from __future__ import annotations

from typing import Any

from jobs.routes.shapes.examples import CHANGES_EXAMPLE, SPEC_EXAMPLE

SPEC_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/JobSpec"},
                "examples": {"two": {"value": SPEC_EXAMPLE}},
            }
        },
    }
}
CHANGES_BODY: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"changes": {"type": "object", "description": "A part of a spec"}},
                    "additionalProperties": False,
                },
                "examples": {"longer": {"value": CHANGES_EXAMPLE}},
            }
        },
    }
}
