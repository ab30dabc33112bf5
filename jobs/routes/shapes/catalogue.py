"""What a spec can name."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from jobs.routes.shapes.examples import EXAMPLE_ID, example

_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_OFFER: dict[str, Any] = {
    "name": "label_smoothing",
    "idea": "Plain training against labels that are not quite sure.",
    "paper": "Szegedy et al., CVPR 2016",
    "spec": {"kind": "label_smoothing"},
    "defaults": {"epsilon": 0.1},
    "options": {"type": "object", "properties": {"epsilon": {"type": "number", "default": 0.1}}},
}


class Offer(BaseModel):
    """One thing that a spec can name."""

    model_config = example(_OFFER)

    name: str
    idea: str
    paper: str | None
    spec: dict[str, str]
    """What a spec says to choose it."""
    defaults: dict[str, Any]
    """Of its options; those that have none must be given."""
    options: dict[str, Any]
    """The JSON Schema of all that it can be told."""


class Offers(BaseModel):
    """All of a kind."""

    model_config = example({"items": [_OFFER]})

    items: list[Offer]


_DATASET: dict[str, Any] = {
    "name": "fashion-mnist",
    "title": "Fashion-MNIST",
    "description": "Pictures of clothes.",
    "licence": "MIT",
    "rows": {"train": 55_000, "validation": 5_000, "test": 10_000},
    "bytes": 30_878_645,
    "digest": _SHA256,
}


class Dataset(BaseModel):
    """A data set that a recipe can name."""

    model_config = example(_DATASET)

    name: str
    title: str
    description: str
    licence: str
    rows: dict[str, int]
    """Of each split."""
    bytes: int
    digest: str
    """SHA-256 of its files, splits and facts."""


class Datasets(BaseModel):
    """All of them, by name."""

    model_config = example({"items": [_DATASET], "unreadable": []})

    items: list[Dataset]
    unreadable: list[str]
    """Names of those whose description cannot be read; the log of the service says why."""


_MODEL: dict[str, Any] = {
    "job": EXAMPLE_ID,
    "replica": "replica-0",
    "recipe": "digits",
    "sha256": _SHA256,
    "bytes": 14_312,
    "metrics": {"eval/accuracy": 0.97},
    "spec": {"kind": "job", "job": EXAMPLE_ID, "replica": 0},
}
_REGISTERED: dict[str, Any] = {"name": "deployed", "sha256": _SHA256, "spec": {"kind": "model", "name": "deployed"}}


class Model(BaseModel):
    """What a replica has left."""

    model_config = example(_MODEL)

    job: str
    replica: str
    recipe: str
    sha256: str | None
    """Of the weights."""
    bytes: int
    metrics: dict[str, float | None]
    spec: dict[str, Any]
    """What a spec says in `method.teacher` to learn from it."""


class NamedModel(BaseModel):
    """A model that the operator has given a name."""

    model_config = example(_REGISTERED)

    name: str
    sha256: str | None
    """Of the weights; None where what the name stands for is not there now."""
    spec: dict[str, str]


class Models(BaseModel):
    """Of some jobs, newest first."""

    model_config = example({"items": [_MODEL], "registered": [_REGISTERED], "next_cursor": None})

    items: list[Model]
    registered: list[NamedModel]
    """All of them, on each page."""
    next_cursor: int | None
