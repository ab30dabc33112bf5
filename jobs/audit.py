"""The record of who changed what: rows are added in the transaction of the change, and never touched again."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from jobs.callers import Caller
from jobs.tables import AUDIT


@dataclass(frozen=True)
class AuditRow:
    """One change that somebody asked for."""

    time: float
    owner: str
    token_id: str | None
    request_id: str
    action: str
    target: str
    """Id of the job or the token."""


def note(connection: sa.Connection, caller: Caller, action: str, target: str, now: float) -> None:
    """Add a row to the transaction of the change."""
    row = {
        "time": now,
        "owner": caller.owner,
        "token_id": caller.token_id,
        "request_id": caller.request_id,
        "action": action,
        "target": target,
    }
    connection.execute(sa.insert(AUDIT).values(**row))


def rows_of(connection: sa.Connection, target: str | None = None) -> list[AuditRow]:
    """Oldest first; of one target, or of all."""
    query = sa.select(AUDIT).order_by(AUDIT.c.seq)
    if target is not None:
        query = query.where(AUDIT.c.target == target)
    return [AuditRow(r.time, r.owner, r.token_id, r.request_id, r.action, r.target) for r in connection.execute(query)]
