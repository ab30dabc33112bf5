"""Parts of the store's transactions: what is looked at or changed on a connection that is open already."""

from __future__ import annotations

import re
from typing import Any

import sqlalchemy as sa

from codistill.words import size
from jobs.job import Job, Reason, Transition
from jobs.status import TERMINAL, State
from jobs.store_engine import Turn, wait_for
from jobs.store_terms import (
    Filter,
    KeyConflict,
    LostRace,
    ParentGone,
    QueueFull,
    Quota,
    StillNeeded,
    StorageTaken,
    Submission,
)
from jobs.tables import IDEMPOTENCY, JOBS, LEASE, TRANSITIONS

_PLAIN = re.compile(r"[\w.-]*")


def same_request(connection: sa.Connection, asked: Submission) -> Job | None:
    """What the caller's key has brought about before."""
    query = sa.select(IDEMPOTENCY).where(IDEMPOTENCY.c.owner == asked.by.owner, IDEMPOTENCY.c.key == asked.key)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    if row.digest != asked.digest:
        raise KeyConflict(f"the key has been used for {row.job_id}, which was another request")
    return read_job(connection, row.job_id)


def check_room(connection: sa.Connection, owner: str, quota: Quota) -> None:
    """Raise `QueueFull` where one more would be one too many, and `StorageTaken`."""
    waiting = sa.select(sa.func.count()).select_from(JOBS).where(JOBS.c.state == State.QUEUED.value)
    if connection.execute(waiting).scalar_one() >= quota.queued:
        raise QueueFull(f"{quota.queued:,} jobs wait already, which is as many as may")
    if connection.execute(waiting.where(JOBS.c.owner == owner)).scalar_one() >= quota.queued_per_owner:
        raise QueueFull(f"{quota.queued_per_owner:,} jobs of {owner} wait already, which is as many as may")
    if (most := quota.stored_bytes_per_owner) is not None:
        left = sa.select(sa.func.coalesce(sa.func.sum(JOBS.c.stored_bytes), 0)).where(JOBS.c.owner == owner)
        if (stored := int(connection.execute(left).scalar_one())) >= most:
            raise StorageTaken(f"jobs of {owner} have left {size(stored)} in the storage, and may leave {size(most)}")


def hold(connection: sa.Connection, parent: str) -> None:
    """Keep a job from being deleted until the transaction ends."""
    query = sa.select(JOBS.c.id).where(JOBS.c.id == parent).with_for_update()
    if connection.execute(query).one_or_none() is None:
        raise ParentGone(f"{parent} has just been deleted")


def check_not_needed(connection: sa.Connection, job_id: str) -> None:
    """Raise `StillNeeded`. Once a job has begun it has all that it needs of its parent."""
    waiting = [State.QUEUED.value, State.ADMITTED.value]
    query = sa.select(JOBS.c.id).where(JOBS.c.parent == job_id, JOBS.c.state.in_(waiting)).order_by(JOBS.c.seq)
    children = connection.execute(query).scalars().all()
    if children:
        raise StillNeeded(f"{children[0]} is to go on from it and has not begun")
    # A teacher is opened again in every attempt.
    kind = JOBS.c.spec["method", "teacher", "kind"].as_string()
    going = [state.value for state in State if state not in TERMINAL]
    query = sa.select(JOBS.c.id, JOBS.c.spec).where(JOBS.c.state.in_(going), kind.in_(["job", "ensemble"]))
    for row in connection.execute(query.order_by(JOBS.c.seq)):
        teacher = row.spec["method"]["teacher"]
        if job_id in [one.get("job") for one in teacher.get("of", [teacher])]:
            raise StillNeeded(f"{row.id} learns from it and has not ended")


def any_integer(number: int) -> sa.ColumnElement[int]:
    """A number that somebody sent: PostgreSQL would refuse to compare the column with one that does not fit into it."""
    return sa.literal(number, sa.BigInteger)


def conditions(only: Filter) -> list[sa.ColumnElement[bool]]:
    """What a filter asks of a row."""
    texts = [*only.labels, *only.labels.values(), only.owner or "", only.name or "", only.parent or ""]
    if any("\0" in text for text in texts):
        return [sa.false()]  # no text in PostgreSQL has a NUL, and to ask for one is an error
    if not all(_PLAIN.fullmatch(key) for key in only.labels):
        return [sa.false()]  # nor has a label's key a quote or the like, which would end a path of SQLite
    found = [JOBS.c.labels[key].as_string() == value for key, value in only.labels.items()]
    if only.states:
        found.append(JOBS.c.state.in_([state.value for state in only.states]))
    for column, value in ((JOBS.c.owner, only.owner), (JOBS.c.name, only.name), (JOBS.c.parent, only.parent)):
        if value is not None:
            found.append(column == value)
    if only.created_from is not None:
        found.append(JOBS.c.created_at >= only.created_from)
    if only.created_before is not None:
        found.append(JOBS.c.created_at < only.created_before)
    return found


def compare_and_set(connection: sa.Connection, job: Job, values: dict[str, Any], lease: int | None) -> None:
    """Change a job that is still as it was read. Raises `LostRace`, also when `lease` is no longer the newest."""
    change = sa.update(JOBS).where(JOBS.c.id == job.id, JOBS.c.state == job.state.value, JOBS.c.fence == job.fence)
    # The row of the lease stays locked to the end of the transaction: it cannot move on between look and change.
    held = sa.select(LEASE.c.fence).where(LEASE.c.id == 1).with_for_update(read=True)
    moved_on = lease is not None and connection.execute(held).scalar_one() != lease
    if moved_on or connection.execute(change.values(**values)).rowcount != 1:
        raise LostRace(f"{job.id} is no longer in {job.state} with fence {job.fence}, or the lease has moved on")


def log_change(
    connection: sa.Connection, job_id: str, state: State, fence: int, reason: Reason | None, now: float
) -> None:
    """Append to `transitions`, in a transaction that changes no more rows that others may hold."""
    # The numbers of two that commit in the other order would hide the first from whoever reads on after the second.
    wait_for(Turn.NUMBER, connection)
    row = {"job_id": job_id, "state": state.value, "fence": fence, "reason": as_json(reason), "time": now}
    connection.execute(sa.insert(TRANSITIONS).values(**row))


def read_job(connection: sa.Connection, job_id: str) -> Job:
    """One that is there."""
    return job_of(connection.execute(sa.select(JOBS).where(JOBS.c.id == job_id)).one())


def transition_of(row: sa.Row[Any]) -> Transition:
    """Out of a row of `transitions`."""
    return Transition(State(row.state), row.fence, Reason.from_json(row.reason), row.time)


def as_json(reason: Reason | None) -> dict[str, Any] | None:
    """As it is kept."""
    return None if reason is None else reason.as_json()


def job_of(row: sa.Row[Any]) -> Job:
    """Out of a row of `jobs`."""
    values: dict[str, Any] = dict(row._mapping)  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
    values["spec_json"] = values.pop("spec")
    values["state"] = State(values["state"])
    values["reason"] = Reason.from_json(values["reason"])
    values["first_cause"] = Reason.from_json(values["first_cause"])
    return Job(**values)
