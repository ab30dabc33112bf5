"""What outlives every process of the service: jobs and their transitions.

A change of state is a compare-and-set on (state, fence) in one transaction that also appends to `transitions`; the
manager's changes hold only while its lease does. SQLite and PostgreSQL take the same statements.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any

import sqlalchemy as sa

from codistill.capacity import demand_of
from codistill.price import likeness
from codistill.spec import JobSpec
from jobs.accounts import Accounts
from jobs.audit import AuditRow, note, rows_of
from jobs.callers import Caller
from jobs.database import Database
from jobs.figures import Facts
from jobs.job import Change, Job, Reason, Transition, new_job_id
from jobs.lease import Lease
from jobs.queue import Standing
from jobs.retention import Past
from jobs.status import TERMINAL, State, check
from jobs.store_facts import read_facts
from jobs.store_parts import (
    any_integer,
    as_json,
    check_not_needed,
    check_room,
    compare_and_set,
    conditions,
    hold,
    job_of,
    log_change,
    read_job,
    same_request,
    transition_of,
)
from jobs.store_terms import ALL, STANDARD, Filter, LostRace, Quota, Submission
from jobs.store_usage import keep_usage, read_usage
from jobs.tables import IDEMPOTENCY, JOBS, TRANSITIONS
from jobs.usage import Usage


class Store:
    """The jobs of one service. Every method is one transaction, blocks on the disk, and raises `StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database, self._clock = database, database.clock
        self.lease, self.accounts = Lease(database), Accounts(database)

    @staticmethod
    def open(url: str, clock: Callable[[], float] = time.time) -> Store:
        """As `Database.open`."""
        return Store(Database.open(url, clock))

    def close(self) -> None:
        self._database.close()

    # ---- jobs

    def create(self, spec: JobSpec) -> Job:
        """Add a job in QUEUED; it is on the disk when this returns."""
        return self.submit(Submission(spec))

    def submit(self, asked: Submission, quota: Quota = STANDARD) -> Job:
        """The same, for a caller; what the same key has brought about before is returned, whatever became of it.

        Raises `KeyConflict`, `QueueFull`, `StorageTaken`, and `ParentGone`.
        """
        now, job_id = self._clock(), new_job_id(asked.spec.name)
        row: dict[str, Any] = {
            "id": job_id,
            "owner": asked.by.owner,
            "parent": asked.parent,
            "priority": asked.spec.priority,
            **asdict(demand_of(asked.spec, (asked.estimate or {}).get("node_bytes_per_rank"))),
            "name": asked.spec.name,
            "labels": dict(asked.spec.labels),
            "spec": asked.spec.model_dump(mode="json"),
            "likeness": likeness(asked.spec),
            "estimate": asked.estimate,
            "state": State.QUEUED.value,
            "fence": 0,
            "attempts": 0,
            "created_at": now,
            "updated_at": now,
            "state_since": now,
        }
        with self._database.one_at_a_time() as connection:
            if asked.key is not None and (earlier := same_request(connection, asked)) is not None:
                return earlier
            check_room(connection, asked.by.owner, quota)
            if asked.parent is not None:
                hold(connection, asked.parent)
            connection.execute(sa.insert(JOBS).values(**row))
            if asked.key is not None:
                key = {"owner": asked.by.owner, "key": asked.key, "digest": asked.digest, "job_id": job_id}
                connection.execute(sa.insert(IDEMPOTENCY).values(**key, created_at=now))
            log_change(connection, job_id, State.QUEUED, 0, None, now)
            note(connection, asked.by, asked.action, job_id, now)
            return read_job(connection, job_id)

    def get(self, job_id: str) -> Job | None:
        with self._database.transaction() as connection:
            row = connection.execute(sa.select(JOBS).where(JOBS.c.id == job_id)).one_or_none()
        return None if row is None else job_of(row)

    def page(self, *, limit: int, before_seq: int | None = None, only: Filter = ALL) -> list[Job]:
        """Newest first, at most `limit`, older than `before_seq`."""
        query = sa.select(JOBS).where(*conditions(only)).order_by(JOBS.c.seq.desc()).limit(limit)
        if before_seq is not None:
            query = query.where(JOBS.c.seq < any_integer(before_seq))
        with self._database.transaction() as connection:
            return [job_of(row) for row in connection.execute(query)]

    def in_states(self, states: Iterable[State]) -> list[Job]:
        """All jobs in any of `states`, oldest first."""
        query = sa.select(JOBS).where(JOBS.c.state.in_([s.value for s in states])).order_by(JOBS.c.seq)
        with self._database.transaction() as connection:
            return [job_of(row) for row in connection.execute(query)]

    def alike(self, likeness: str, *, owner: str | None, limit: int) -> list[Job]:
        """At most `limit` jobs of the same likeness that have succeeded, newest first; those that go on from others, of
        whose steps they made only some, are left out. `owner` limits them to that one's."""
        wanted = [JOBS.c.likeness == likeness, JOBS.c.state == State.SUCCEEDED.value, JOBS.c.parent.is_(None)]
        if owner is not None:
            wanted.append(JOBS.c.owner == owner)
        query = sa.select(JOBS).where(*wanted).order_by(JOBS.c.seq.desc()).limit(limit)
        with self._database.transaction() as connection:
            return [job_of(row) for row in connection.execute(query)]

    def standings(self, states: Iterable[State]) -> list[Standing]:
        """Of all jobs in any of `states` what the order of the queue depends on, oldest first."""
        columns = [JOBS.c[one.name] for one in fields(Standing)]
        query = sa.select(*columns).where(JOBS.c.state.in_([s.value for s in states])).order_by(JOBS.c.seq)
        with self._database.transaction() as connection:
            return [Standing(*row) for row in connection.execute(query)]

    def pasts(self) -> list[Past]:
        """Of all jobs what decides which of them may go."""
        columns = [JOBS.c[one.name] for one in fields(Past)]
        with self._database.transaction() as connection:
            return [Past(*row) for row in connection.execute(sa.select(*columns).order_by(JOBS.c.seq))]

    def transitions(self, job_id: str) -> list[Transition]:
        query = sa.select(TRANSITIONS).where(TRANSITIONS.c.job_id == job_id).order_by(TRANSITIONS.c.seq)
        with self._database.transaction() as connection:
            rows = connection.execute(query).all()
        return [transition_of(row) for row in rows]

    def changes(
        self, after_seq: int, *, owner: str | None = None, job_id: str | None = None, limit: int = 500
    ) -> list[Change]:
        """At most `limit` transitions after `after_seq`, oldest first: of one job, of one owner's jobs, or of all.
        None with a lower number comes to be seen later."""
        later = TRANSITIONS.c.seq > any_integer(after_seq)
        query = sa.select(TRANSITIONS).where(later).order_by(TRANSITIONS.c.seq).limit(limit)
        if job_id is not None:
            query = query.where(TRANSITIONS.c.job_id == job_id)
        if owner is not None:
            query = query.join(JOBS, JOBS.c.id == TRANSITIONS.c.job_id).where(JOBS.c.owner == owner)
        with self._database.transaction() as connection:
            return [Change(row.seq, row.job_id, transition_of(row)) for row in connection.execute(query)]

    def newest_change(self) -> int:
        """Number of the last transition; 0 when there was none."""
        with self._database.transaction() as connection:
            return connection.execute(sa.select(sa.func.max(TRANSITIONS.c.seq))).scalar_one() or 0

    def now(self) -> float:
        """By the clock that this store goes by."""
        return self._clock()

    def facts(self, owner: str | None) -> Facts:
        """What figures about the service need; `owner` limits what is told of owners to that one."""
        return read_facts(self._database, owner)

    def usage(
        self, owner: str | None, *, created_from: float | None = None, created_before: float | None = None
    ) -> Sequence[Usage]:
        """What jobs submitted in that time have reserved, those deleted since too; `owner` limits it to that one."""
        with self._database.transaction() as connection:
            return read_usage(connection, self._clock(), owner, created_from, created_before)

    def audit(self, target: str | None = None) -> list[AuditRow]:
        """Who changed what, oldest first."""
        with self._database.transaction() as connection:
            return rows_of(connection, target)

    # ---- changes

    def move(
        self,
        job: Job,
        to: State,
        *,
        reason: Reason | None = None,
        fence: int | None = None,
        submission_id: str | None = None,
        first_cause: Reason | None = None,
        lease: int | None = None,
        by: Caller | None = None,
    ) -> Job:
        """Put `job`, as it was read, into state `to`; `fence` begins a new attempt. `by` is whoever cancelled it;
        nobody, when the manager saw that it was due.

        Raises `IllegalTransition`, or `LostRace` when the job has changed since or `lease` is no longer the newest.
        """
        check(job.state, to)
        now = self._clock()
        values: dict[str, Any] = {
            "state": to.value,
            "reason": as_json(reason),
            "state_since": now,
            "updated_at": now,
        }
        if fence is not None:
            values |= {"fence": fence, "attempts": job.attempts + 1, "submission_id": submission_id}
            values["started_at"] = job.started_at or now
        if first_cause is not None:
            values["first_cause"] = as_json(first_cause)
        if to in TERMINAL:
            values["ended_at"] = now
        with self._database.transaction(write=True) as connection:
            compare_and_set(connection, job, values, lease)
            log_change(connection, job.id, to, job.fence if fence is None else fence, reason, now)
            if by is not None:
                note(connection, by, "cancel", job.id, now)
            return read_job(connection, job.id)

    def explain_wait(self, job: Job, reason: Reason, *, lease: int | None = None) -> None:
        """Say why `job` is still where it is. Not a change of state. Raises `LostRace`."""
        with self._database.transaction(write=True) as connection:
            compare_and_set(connection, job, {"reason": as_json(reason), "updated_at": self._clock()}, lease)

    def set_priority(self, job: Job, priority: int, *, by: Caller) -> Job:
        """Where it stands among those that wait. Raises `LostRace`."""
        now = self._clock()
        with self._database.transaction(write=True) as connection:
            compare_and_set(connection, job, {"priority": priority, "updated_at": now}, None)
            note(connection, by, "priority", job.id, now)
            return read_job(connection, job.id)

    def due_for_measuring(self, before: float) -> str | None:
        """The job whose part of the storage has gone longest without being looked at: never, or last before then while
        it was not over, or last before its end. None when there is none."""
        ended, at = JOBS.c.ended_at, JOBS.c.measured_at
        stale = sa.case((ended.is_(None), at < before), else_=at <= ended)
        due = sa.select(JOBS.c.id).where(JOBS.c.fence > 0, at.is_(None) | stale)
        with self._database.transaction() as connection:
            return connection.execute(due.order_by(at.is_not(None), at, JOBS.c.seq).limit(1)).scalar_one_or_none()

    def measured(self, job_id: str, stored_bytes: int) -> None:
        """Note what a job has left in the storage. Not a change of the job."""
        values = {"stored_bytes": stored_bytes, "measured_at": self._clock()}
        with self._database.transaction(write=True) as connection:
            connection.execute(sa.update(JOBS).where(JOBS.c.id == job_id).values(**values))

    def delete(self, job: Job, *, by: Caller, action: str = "delete") -> None:
        """Forget a job that has ended; the audit stays, and what it reserved. Raises `LostRace`, and `StillNeeded`."""
        if job.state not in TERMINAL:
            raise ValueError(f"{job.id} is {job.state}: only what has ended can be deleted")
        with self._database.transaction(write=True) as connection:
            connection.execute(sa.delete(TRANSITIONS).where(TRANSITIONS.c.job_id == job.id))
            connection.execute(sa.delete(IDEMPOTENCY).where(IDEMPOTENCY.c.job_id == job.id))
            keep_usage(connection, job.id, self._clock())
            if connection.execute(sa.delete(JOBS).where(JOBS.c.id == job.id)).rowcount != 1:
                raise LostRace(f"{job.id} is no longer there")
            check_not_needed(connection, job.id)  # now that nobody can add another
            note(connection, by, action, job.id, self._clock())
