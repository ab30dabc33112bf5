"""What figures about the service need of the store, in one transaction of a few grouped queries."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from jobs.database import Database
from jobs.figures import WAITS_OVER_S, Facts
from jobs.status import TERMINAL, State
from jobs.store_usage import read_usage
from jobs.tables import JOBS, LEASE, TRANSITIONS

UNEXPLAINED = "none"
"""The cause of what ended without a reason: success."""


def read_facts(database: Database, owner: str | None) -> Facts:
    """At this moment; `owner` limits what is told of owners to that one. Raises `StoreError`."""
    now = database.clock()
    with database.transaction() as connection:
        by_state = _counted(connection, sa.select(JOBS.c.state, sa.func.count()).group_by(JOBS.c.state))
        waiting = JOBS.c.state == State.QUEUED.value
        depth = sa.select(JOBS.c.owner, sa.func.count()).where(waiting).group_by(JOBS.c.owner)
        if owner is not None:
            depth = depth.where(JOBS.c.owner == owner)
        oldest = connection.execute(sa.select(sa.func.min(JOBS.c.created_at)).where(waiting)).scalar_one()
        cause = sa.func.coalesce(TRANSITIONS.c.reason["code"].as_string(), UNEXPLAINED)
        # An attempt ends where its job recovers, or ends; before the first attempt, nothing has ended.
        ended = TRANSITIONS.c.state.in_([State.RECOVERING.value, *(state.value for state in TERMINAL)])
        causes = sa.select(cause, sa.func.count()).where(ended, TRANSITIONS.c.fence > 0).group_by(cause)
        admitted = (
            sa.select(TRANSITIONS.c.time - JOBS.c.created_at)
            .join(JOBS, JOBS.c.id == TRANSITIONS.c.job_id)
            .where(TRANSITIONS.c.state == State.ADMITTED.value, TRANSITIONS.c.time >= now - WAITS_OVER_S)
        )
        lease = connection.execute(sa.select(LEASE).where(LEASE.c.id == 1)).one()
        return Facts(
            by_state={State(state): count for state, count in by_state.items()},
            waiting_by_owner=_counted(connection, depth),
            oldest_wait_s=0.0 if oldest is None else max(0.0, now - oldest),
            waits_s=[max(0.0, wait) for wait in connection.execute(admitted).scalars()],
            ended_by_cause=_counted(connection, causes),
            lease_held=lease.expires_at > now,
            lease_fence=lease.fence,
            round_age_s=None if lease.round_at is None else max(0.0, now - lease.round_at),
            usage=read_usage(connection, now, owner),
        )


def _counted(connection: sa.Connection, query: Any) -> dict[str, int]:
    rows: Any = connection.execute(query)
    return {str(key): int(count) for key, count in rows}
