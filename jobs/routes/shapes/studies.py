"""Studies: arms x seeds."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from jobs.routes.shapes.examples import EXAMPLE_ID, example

_ITEM: dict[str, Any] = {"name": "weights", "jobs": 10, "ended": 4}
_JOB: dict[str, Any] = {"arm": "solo", "choice": 0, "seed": 1, "id": EXAMPLE_ID, "state": "RUNNING"}


class StudyItem(BaseModel):
    """A study in a list."""

    model_config = example(_ITEM)

    name: str
    jobs: int
    ended: int
    """How many of them have ended, well or not."""


class Studies(BaseModel):
    """All of them."""

    model_config = example({"items": [_ITEM]})

    items: list[StudyItem]


class StudyJob(BaseModel):
    """A job of a study."""

    model_config = example(_JOB)

    arm: str
    choice: int
    """Which combination of the arm's grid, from 0."""
    seed: int
    id: str
    state: str


class Study(BaseModel):
    """A study, as far as it is."""

    model_config = example(
        {"name": "weights", "jobs": [_JOB], "report": None, "why": "no job of the baseline 'solo' has ended well yet"}
    )

    name: str
    jobs: list[StudyJob]
    report: dict[str, Any] | None
    """What `codistill study -o json` prints: arms, differences to the baseline with their intervals, what each was
    given, and log loss on validation against steps, seconds, bytes and operations."""
    why: str | None
    """Why there is no report."""
