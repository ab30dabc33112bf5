"""What may go: ended jobs that are old and not to be kept. Pure, on jobs as a service lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from jobs.status import TERMINAL, State


def prunable(
    items: Sequence[Mapping[str, Any]], *, now: datetime, older_than: timedelta, keep: Mapping[str, str | None]
) -> list[str]:
    """Ids of what ended at least `older_than` ago, oldest end first.

    `keep` maps labels to the value that keeps a job, None for any. What another job goes on from stays as long as that.
    """
    ended = {
        item["id"]: datetime.fromisoformat(item["ended_at"])
        for item in items
        if State(item["status"]["state"]) in TERMINAL and not is_kept(item["labels"], keep)
    }
    old = {job_id: end for job_id, end in ended.items() if now - end >= older_than}
    # A child that stays keeps its parent, and that the one before it.
    while needed := {item["parent"] for item in items if item["id"] not in old} & old.keys():
        old = {job_id: end for job_id, end in old.items() if job_id not in needed}
    return sorted(old, key=lambda job_id: (old[job_id], job_id))


def is_kept(labels: Mapping[str, str], keep: Mapping[str, str | None]) -> bool:
    """Whether one of its labels says so."""
    return any(key in labels and value in (None, labels[key]) for key, value in keep.items())
