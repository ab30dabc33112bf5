"""Who is the manager: of many that try, one at a time, each with a fence higher than all before."""

from __future__ import annotations

import sqlalchemy as sa

from jobs.database import Database
from jobs.tables import LEASE


class Lease:
    """The one lease of a store. Every method is one transaction and raises `StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def acquire(self, owner: str, duration_s: float) -> int | None:
        """Take or renew the lease; its fence, or None while another owner has it.

        A new owner gets a higher fence, and with it the old owner's changes are refused.
        """
        now = self._database.clock()
        mine = sa.and_(LEASE.c.owner == owner, LEASE.c.expires_at > now)
        renewed = sa.update(LEASE).where(LEASE.c.id == 1, mine).values(expires_at=now + duration_s)
        free = sa.or_(LEASE.c.owner == owner, LEASE.c.expires_at <= now)
        taken = (
            sa.update(LEASE)
            .where(LEASE.c.id == 1, free)
            .values(owner=owner, fence=LEASE.c.fence + 1, expires_at=now + duration_s)
        )
        with self._database.transaction(write=True) as connection:
            if connection.execute(renewed).rowcount == 1 or connection.execute(taken).rowcount == 1:
                return int(connection.execute(sa.select(LEASE.c.fence).where(LEASE.c.id == 1)).scalar_one())
        return None

    def release(self, owner: str) -> None:
        """Let the next manager start at once."""
        with self._database.transaction(write=True) as connection:
            connection.execute(sa.update(LEASE).where(LEASE.c.owner == owner).values(expires_at=0.0))

    def note_round(self, fence: int) -> None:
        """That the holder of `fence` has just looked at all jobs; of one that has lost the lease it is not noted."""
        mine = sa.update(LEASE).where(LEASE.c.id == 1, LEASE.c.fence == fence)
        with self._database.transaction(write=True) as connection:
            connection.execute(mine.values(round_at=self._database.clock()))

    def is_held(self) -> bool:
        """Whether some manager is at work."""
        query = sa.select(LEASE.c.expires_at).where(LEASE.c.id == 1)
        with self._database.transaction() as connection:
            return connection.execute(query).scalar_one() > self._database.clock()
