"""What the OpenAPI document says of itself: an example of every answer that is one, and a word on every route."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.routes import shapes
from jobs.routes.submission import Priority
from tests.unit.jobs.test_api import Service

OF_SPECS = "codistill.spec"
"""The parts of a spec are explained by their own defaults; what a whole one looks like stands with its body."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("openapi"))
    with service.http:
        yield service
    service.store.close()


@pytest.fixture(scope="module")
def document(service: Service) -> dict[str, Any]:
    return service.http.get("/openapi.json").json()


def ours() -> list[str]:
    return [name for name in shapes.__all__ if isinstance(getattr(shapes, name), type)]


def test_every_answer_has_an_example_that_fits(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    names = [*ours(), "Priority"]
    assert len(names) > 35
    assert not set(names) - schemas.keys()
    for name in names:
        examples = schemas[name].get("examples")
        assert examples, f"{name} has no example"
        for example in examples:
            getattr(shapes, name, Priority).model_validate_json(json.dumps(example))
            known = schemas[name]["properties"].keys()
            assert example.keys() <= known, name
            assert set(schemas[name].get("required", [])) <= example.keys(), name


def test_only_parts_of_a_spec_are_without(document: dict[str, Any]) -> None:
    import codistill.spec as spec

    parts = {name for name in vars(spec) if isinstance(getattr(spec, name), type)}
    without = {name for name, schema in document["components"]["schemas"].items() if "examples" not in schema}
    assert without - parts <= {"JsonValue", "State"}


def test_every_body_has_an_example(document: dict[str, Any]) -> None:
    bodies = [
        content
        for path in document["paths"].values()
        for operation in path.values()
        for content in operation.get("requestBody", {}).get("content", {}).values()
    ]
    assert len(bodies) >= 5
    schemas = document["components"]["schemas"]
    for body in bodies:
        named = body["schema"].get("$ref", "").rpartition("/")[2]
        assert body.get("examples") or schemas[named]["examples"]


def test_every_route_says_what_it_does(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation.get("description"), (method, path)
            assert operation["tags"], (method, path)


def test_the_document_is_made_once(service: Service, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Since it is made in the event loop."""
    monkeypatch.delattr(shapes, "examples_of_all")
    assert service.http.get("/openapi.json").json() == document
