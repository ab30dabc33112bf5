"""What jobs have reserved, summed up in the store. Of jobs that have been deleted the sums stay."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from jobs.tables import JOBS, PAST_USAGE
from jobs.usage import Usage


def read_usage(
    connection: sa.Connection,
    now: float,
    owner: str | None = None,
    created_from: float | None = None,
    created_before: float | None = None,
) -> Sequence[Usage]:
    """Of each owner, or of `owner` alone, over jobs submitted in that time; by the names of owners."""
    both = sa.union_all(
        sa.select(JOBS.c.owner, JOBS.c.created_at, *_seconds(now), JOBS.c.stored_bytes).where(
            JOBS.c.started_at.is_not(None)
        ),
        sa.select(PAST_USAGE.c.owner, PAST_USAGE.c.created_at, PAST_USAGE.c.cpu_s, PAST_USAGE.c.gpu_s, sa.literal(0)),
    ).subquery()
    sums = (sa.func.count(), sa.func.sum(both.c.cpu_s), sa.func.sum(both.c.gpu_s), sa.func.sum(both.c.stored_bytes))
    query = sa.select(both.c.owner, *sums).group_by(both.c.owner).order_by(both.c.owner)
    if owner is not None:
        query = query.where(both.c.owner == owner)
    if created_from is not None:
        query = query.where(both.c.created_at >= created_from)
    if created_before is not None:
        query = query.where(both.c.created_at < created_before)
    # PostgreSQL adds whole numbers up to decimals.
    return [Usage(*row[:-1], stored_bytes=int(row[-1])) for row in connection.execute(query)]


def keep_usage(connection: sa.Connection, job_id: str, now: float) -> None:
    """Write down what a job has reserved, in the transaction that deletes it."""
    facts = sa.select(JOBS.c.id, JOBS.c.owner, JOBS.c.created_at, *_seconds(now))
    begun = facts.where(JOBS.c.id == job_id, JOBS.c.started_at.is_not(None))
    connection.execute(sa.insert(PAST_USAGE).from_select(["job_id", "owner", "created_at", "cpu_s", "gpu_s"], begun))


def _seconds(now: float) -> tuple[sa.ColumnElement[float], sa.ColumnElement[float]]:
    """CPU- and GPU-seconds of a row of `JOBS` that has begun."""
    held = sa.func.coalesce(JOBS.c.ended_at, now) - JOBS.c.started_at
    # The clocks of two managers may differ by a little.
    ranked = sa.case((held < 0, 0.0), else_=held) * JOBS.c.ranks
    return (ranked * JOBS.c.cpus).label("cpu_s"), (ranked * JOBS.c.gpus).label("gpu_s")
