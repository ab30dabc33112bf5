"""What may go: ended jobs that are old and not to be kept. Pure.

One rule for `codistill prune` and for a service that deletes by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

DAY_S = 86_400.0
KEEP_LABEL = "keep"


@dataclass(frozen=True)
class Past:
    """What the rule depends on, of one job."""

    id: str
    parent: str | None
    labels: Mapping[str, str]
    ended_at: float | None
    """Seconds since the epoch; None while it has not ended."""

    @staticmethod
    def of_item(item: Mapping[str, Any]) -> Past:
        """Of a job as a service lists it."""
        ended = item["ended_at"]
        return Past(
            item["id"],
            item["parent"],
            item["labels"],
            None if ended is None else datetime.fromisoformat(ended).timestamp(),
        )


def prunable(
    jobs: Sequence[Past], *, now: float, older_than_s: float, keep: Mapping[str, str | None] | None = None
) -> list[str]:
    """Ids of what ended at least `older_than_s` ago, oldest end first.

    `keep` maps labels to the value that keeps a job, None for any; the label `keep` always does. What another job goes
    on from stays as long as that.
    """
    kept = {KEEP_LABEL: None, **(keep or {})}
    ended = {job.id: job.ended_at for job in jobs if job.ended_at is not None and not is_kept(job.labels, kept)}
    old = {job_id: end for job_id, end in ended.items() if now - end >= older_than_s}
    # A child that stays keeps its parent, and that the one before it.
    while needed := {job.parent for job in jobs if job.id not in old} & old.keys():
        old = {job_id: end for job_id, end in old.items() if job_id not in needed}
    return sorted(old, key=lambda job_id: (old[job_id], job_id))


def is_kept(labels: Mapping[str, str], keep: Mapping[str, str | None]) -> bool:
    """Whether one of its labels says so."""
    return any(key in labels and value in (None, labels[key]) for key, value in keep.items())
