"""The answers as they stand in the OpenAPI document, each with an example."""

from typing import Any

from pydantic import BaseModel

from jobs.routes.shapes.bodies import CHANGES_BODY, SPEC_BODY
from jobs.routes.shapes.catalogue import Dataset, Datasets, Model, Models, NamedModel, Offer, Offers
from jobs.routes.shapes.examples import EXAMPLE_ID, SPEC_EXAMPLE
from jobs.routes.shapes.jobs import (
    Change,
    Deadlines,
    FullStatus,
    Job,
    JobPage,
    JobSummary,
    JobUsage,
    Links,
    Progress,
    ShortStatus,
    Validated,
    Why,
)
from jobs.routes.shapes.price import Estimate, Speed, Spread
from jobs.routes.shapes.problem import BadKey, ProblemDetails
from jobs.routes.shapes.records import Artifact, Artifacts, Disagreement, Heard, LedgerRows, Rows, Thinned
from jobs.routes.shapes.service import OwnersUsage, Queue, Room, Status, Usages, Version, Waiting
from jobs.routes.shapes.studies import Studies, Study, StudyItem, StudyJob

__all__ = [
    "CHANGES_BODY",
    "EXAMPLE_ID",
    "SPEC_BODY",
    "SPEC_EXAMPLE",
    "Artifact",
    "Artifacts",
    "BadKey",
    "Change",
    "Dataset",
    "Datasets",
    "Deadlines",
    "Disagreement",
    "Estimate",
    "FullStatus",
    "Heard",
    "Job",
    "JobPage",
    "JobSummary",
    "JobUsage",
    "LedgerRows",
    "Links",
    "Model",
    "Models",
    "NamedModel",
    "Offer",
    "Offers",
    "OwnersUsage",
    "ProblemDetails",
    "Progress",
    "Queue",
    "Room",
    "Rows",
    "ShortStatus",
    "Speed",
    "Spread",
    "Status",
    "Studies",
    "Study",
    "StudyItem",
    "StudyJob",
    "Thinned",
    "Usages",
    "Validated",
    "Version",
    "Waiting",
    "Why",
]


def examples_of_all() -> dict[str, list[Any]]:
    """Of each type here, by its name."""
    kinds = {name: globals()[name] for name in __all__}
    return {
        name: kind.model_json_schema()["examples"]
        for name, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    }
