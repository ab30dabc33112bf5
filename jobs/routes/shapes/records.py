"""What a job writes and leaves."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from jobs.routes.shapes.examples import example


class Thinned(BaseModel):
    """That rows were left out, and how many were there."""

    model_config = example({"rows": 100_000, "kept": 1_800})

    rows: int
    kept: int


_ROWS: dict[str, Any] = {
    "items": [{"step": 10, "fence": 1, "incarnation": 0, "name": "train/loss", "value": 1.25}],
    "next_after_step": None,
    "thinned": None,
}


class Rows(BaseModel):
    """Rows of a table, ascending by step."""

    model_config = example(_ROWS)

    items: list[dict[str, Any]]
    next_after_step: int | None
    """What to send as after_step for more; None when there are none now."""
    thinned: Thinned | None
    """None when every row is there."""


class Heard(BaseModel):
    """How often a replica met a teacher's snapshots, over all steps."""

    model_config = example({"teacher": "replica-1", "verdict": "accepted", "rows": 360, "bytes_received": 1_206_912})

    teacher: str | None
    verdict: str
    rows: int
    bytes_received: int


class LedgerRows(Rows):
    """Rows of the ledger, and their sums."""

    model_config = example({**_ROWS, "items": [], "totals": []})

    totals: list[Heard]
    """Of all rows, whatever was asked for."""


class Disagreement(BaseModel):
    """How much the models of one job differ on the test set."""

    model_config = example({"replicas": ["replica-0", "replica-1"], "flips": [[0.0, 0.02], [0.02, 0.0]], "missing": []})

    replicas: list[str]
    flips: list[list[float]]
    """Share of samples whose most likely class differs, of every pair."""
    missing: list[str]
    """Replicas that have not written down what they predict; they do so when they end."""


_ARTIFACT = {
    "name": "export/replica-0/model.safetensors",
    "bytes": 14312,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "media_type": "application/octet-stream",
}


class Artifact(BaseModel):
    """A file that a job has left."""

    model_config = example(_ARTIFACT)

    name: str
    bytes: int
    sha256: str | None
    media_type: str


class Artifacts(BaseModel):
    """All of them, in the order of names."""

    model_config = example({"items": [_ARTIFACT]})

    items: list[Artifact]
