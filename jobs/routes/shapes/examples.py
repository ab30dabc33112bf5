"""Examples, and how a type carries its own."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

EXAMPLE_ID = "pair-k3x7qa"
SPEC_EXAMPLE = {
    "name": "pair",
    "recipe": {"kind": "digits"},
    "method": {"kind": "codistillation"},
    "replicas": {"count": 2},
    "training": {"steps": 600},
}
CHANGES_EXAMPLE = {"changes": {"training": {"steps": 1200}, "labels": {"again": "1"}}}


def example(value: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})
