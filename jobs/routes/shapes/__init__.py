"""The answers as they stand in the OpenAPI document, each with an example."""

from jobs.routes.shapes.bodies import CHANGES_BODY, SPEC_BODY
from jobs.routes.shapes.examples import EXAMPLE_ID, SPEC_EXAMPLE
from jobs.routes.shapes.jobs import (
    Change,
    FullStatus,
    Job,
    JobPage,
    JobSummary,
    Links,
    Progress,
    ShortStatus,
    Validated,
    Why,
)
from jobs.routes.shapes.price import Estimate, Speed, Spread
from jobs.routes.shapes.problem import BadKey, ProblemDetails
from jobs.routes.shapes.records import Artifact, Artifacts, Disagreement, Heard, LedgerRows, Rows, Thinned
from jobs.routes.shapes.service import Queue, Room, Status, Version, Waiting

__all__ = [
    "CHANGES_BODY",
    "EXAMPLE_ID",
    "SPEC_BODY",
    "SPEC_EXAMPLE",
    "Artifact",
    "Artifacts",
    "BadKey",
    "Change",
    "Disagreement",
    "Estimate",
    "FullStatus",
    "Heard",
    "Job",
    "JobPage",
    "JobSummary",
    "LedgerRows",
    "Links",
    "ProblemDetails",
    "Progress",
    "Queue",
    "Room",
    "Rows",
    "ShortStatus",
    "Speed",
    "Spread",
    "Status",
    "Thinned",
    "Validated",
    "Version",
    "Waiting",
    "Why",
]
