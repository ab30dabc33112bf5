"""What outlives every process of the service: jobs, their transitions, and who is the manager.

A change of state is a compare-and-set on (state, fence) in one transaction that also appends to `transitions`; the
manager's changes hold only while its lease does. Now SQLite; only what PostgreSQL takes as well is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from codistill.spec import JobSpec
from jobs.job import Job, Reason, Transition, new_job_id
from jobs.status import TERMINAL, State, check
from jobs.store_engine import explain, make_engine, migrate

_METADATA = sa.MetaData()

JOBS = sa.Table(
    "jobs",
    _METADATA,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(63)),
    sa.Column("name", sa.String(63)),
    sa.Column("labels", sa.JSON),
    sa.Column("spec", sa.JSON),
    sa.Column("state", sa.String(16)),
    sa.Column("reason", sa.JSON(none_as_null=True)),
    sa.Column("first_cause", sa.JSON(none_as_null=True)),
    sa.Column("fence", sa.Integer),
    sa.Column("attempts", sa.Integer),
    sa.Column("submission_id", sa.String(80)),
    sa.Column("created_at", sa.Double),
    sa.Column("updated_at", sa.Double),
    sa.Column("state_since", sa.Double),
    sa.Column("started_at", sa.Double),
    sa.Column("ended_at", sa.Double),
)
TRANSITIONS = sa.Table(
    "transitions",
    _METADATA,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.String(63)),
    sa.Column("state", sa.String(16)),
    sa.Column("fence", sa.Integer),
    sa.Column("reason", sa.JSON(none_as_null=True)),
    sa.Column("time", sa.Double),
)
LEASE = sa.Table(
    "manager_lease",
    _METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("owner", sa.String(64)),
    sa.Column("fence", sa.Integer),
    sa.Column("expires_at", sa.Double),
)


class LostRace(RuntimeError):
    """Somebody else changed the job first, or the lease has gone to another manager: look again, then decide again."""


class Store:
    """The jobs of one service. Every method is one transaction, blocks on the disk, and raises `StoreError`."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine, self._clock = engine, clock

    @staticmethod
    def open(url: str, clock: Callable[[], float] = time.time) -> Store:
        """Connect (e.g. `sqlite:////var/lib/codistill/jobs.db`) and bring the schema to its newest version."""
        engine = make_engine(url)
        migrate(engine)
        return Store(engine, clock)

    def close(self) -> None:
        self._engine.dispose()

    # ---- jobs

    def create(self, spec: JobSpec) -> Job:
        """Add a job in QUEUED; it is on the disk when this returns."""
        now, job_id = self._clock(), new_job_id(spec.name)
        row: dict[str, Any] = {
            "id": job_id,
            "name": spec.name,
            "labels": dict(spec.labels),
            "spec": spec.model_dump(mode="json"),
            "state": State.QUEUED.value,
            "fence": 0,
            "attempts": 0,
            "created_at": now,
            "updated_at": now,
            "state_since": now,
        }
        with self._transaction(write=True) as connection:
            connection.execute(sa.insert(JOBS).values(**row))
            self._log(connection, job_id, State.QUEUED, 0, None, now)
            return _job(connection.execute(sa.select(JOBS).where(JOBS.c.id == job_id)).one())

    def get(self, job_id: str) -> Job | None:
        with self._transaction() as connection:
            row = connection.execute(sa.select(JOBS).where(JOBS.c.id == job_id)).one_or_none()
        return None if row is None else _job(row)

    def page(self, *, limit: int, before_seq: int | None = None, state: State | None = None) -> list[Job]:
        """Newest first, at most `limit`, older than `before_seq`."""
        query = sa.select(JOBS).order_by(JOBS.c.seq.desc()).limit(limit)
        if before_seq is not None:
            query = query.where(JOBS.c.seq < before_seq)
        if state is not None:
            query = query.where(JOBS.c.state == state.value)
        with self._transaction() as connection:
            return [_job(row) for row in connection.execute(query)]

    def in_states(self, states: Iterable[State]) -> list[Job]:
        """All jobs in any of `states`, oldest first."""
        query = sa.select(JOBS).where(JOBS.c.state.in_([s.value for s in states])).order_by(JOBS.c.seq)
        with self._transaction() as connection:
            return [_job(row) for row in connection.execute(query)]

    def transitions(self, job_id: str) -> list[Transition]:
        query = sa.select(TRANSITIONS).where(TRANSITIONS.c.job_id == job_id).order_by(TRANSITIONS.c.seq)
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return [Transition(State(r.state), r.fence, Reason.from_json(r.reason), r.time) for r in rows]

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
    ) -> Job:
        """Put `job`, as it was read, into state `to`; `fence` begins a new attempt.

        Raises `IllegalTransition`, or `LostRace` when the job has changed since or `lease` is no longer the newest.
        """
        check(job.state, to)
        now = self._clock()
        values: dict[str, Any] = {"state": to.value, "reason": _json(reason), "state_since": now, "updated_at": now}
        if fence is not None:
            values |= {"fence": fence, "attempts": job.attempts + 1, "submission_id": submission_id}
            values["started_at"] = job.started_at or now
        if first_cause is not None:
            values["first_cause"] = _json(first_cause)
        if to in TERMINAL:
            values["ended_at"] = now
        with self._transaction(write=True) as connection:
            self._compare_and_set(connection, job, values, lease)
            self._log(connection, job.id, to, job.fence if fence is None else fence, reason, now)
            return _job(connection.execute(sa.select(JOBS).where(JOBS.c.id == job.id)).one())

    def explain_wait(self, job: Job, reason: Reason, *, lease: int | None = None) -> None:
        """Say why `job` is still where it is. Not a change of state. Raises `LostRace`."""
        with self._transaction(write=True) as connection:
            self._compare_and_set(connection, job, {"reason": _json(reason), "updated_at": self._clock()}, lease)

    def _compare_and_set(self, connection: sa.Connection, job: Job, values: dict[str, Any], lease: int | None) -> None:
        change = sa.update(JOBS).where(JOBS.c.id == job.id, JOBS.c.state == job.state.value, JOBS.c.fence == job.fence)
        if lease is not None:
            change = change.where(sa.exists().where(LEASE.c.id == 1, LEASE.c.fence == lease))
        if connection.execute(change.values(**values)).rowcount != 1:
            raise LostRace(f"{job.id} is no longer in {job.state} with fence {job.fence}, or the lease has moved on")

    def _log(
        self, connection: sa.Connection, job_id: str, state: State, fence: int, reason: Reason | None, now: float
    ) -> None:
        row = {"job_id": job_id, "state": state.value, "fence": fence, "reason": _json(reason), "time": now}
        connection.execute(sa.insert(TRANSITIONS).values(**row))

    # ---- the manager's lease

    def acquire_lease(self, owner: str, duration_s: float) -> int | None:
        """Take or renew the lease; its fence, or None while another owner has it.

        A new owner gets a higher fence, and with it the old owner's changes are refused.
        """
        now = self._clock()
        mine = sa.and_(LEASE.c.owner == owner, LEASE.c.expires_at > now)
        renewed = sa.update(LEASE).where(LEASE.c.id == 1, mine).values(expires_at=now + duration_s)
        free = sa.or_(LEASE.c.owner == owner, LEASE.c.expires_at <= now)
        taken = (
            sa.update(LEASE)
            .where(LEASE.c.id == 1, free)
            .values(owner=owner, fence=LEASE.c.fence + 1, expires_at=now + duration_s)
        )
        with self._transaction(write=True) as connection:
            if connection.execute(renewed).rowcount == 1 or connection.execute(taken).rowcount == 1:
                return int(connection.execute(sa.select(LEASE.c.fence).where(LEASE.c.id == 1)).scalar_one())
        return None

    def release_lease(self, owner: str) -> None:
        """Let the next manager start at once."""
        with self._transaction(write=True) as connection:
            connection.execute(sa.update(LEASE).where(LEASE.c.owner == owner).values(expires_at=0.0))

    def lease_is_held(self) -> bool:
        """Whether some manager is at work."""
        query = sa.select(LEASE.c.expires_at).where(LEASE.c.id == 1)
        with self._transaction() as connection:
            return connection.execute(query).scalar_one() > self._clock()

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Generator[sa.Connection]:
        try:
            with self._engine.execution_options(codistill_write=write).begin() as connection:
                yield connection
        except DBAPIError as error:
            raise explain(self._engine.url, error) from error


def _json(reason: Reason | None) -> dict[str, Any] | None:
    return None if reason is None else reason.as_json()


def _job(row: sa.Row[Any] | Sequence[Any]) -> Job:
    values: dict[str, Any] = dict(row._mapping)  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
    values["spec_json"] = values.pop("spec")
    values["state"] = State(values["state"])
    values["reason"] = Reason.from_json(values["reason"])
    values["first_cause"] = Reason.from_json(values["first_cause"])
    return Job(**values)
