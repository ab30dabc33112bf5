"""The store's contract on SQLite and on PostgreSQL: durable rows, compare-and-set under concurrency, leases with
fences."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from codistill.run_dir import ID_PATTERN
from codistill.spec import JobSpec
from jobs.callers import LOCAL, Caller, Scope
from jobs.errors import StoreError
from jobs.job import Reason, new_job_id
from jobs.status import IllegalTransition, State
from jobs.store import Store
from jobs.store_engine import make_engine, migrate
from jobs.store_parts import compare_and_set, log_change
from jobs.store_terms import Filter, LostRace, QueueFull, Quota, Submission
from tests.unit.jobs.fakes import Clock, spec


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def on_disk(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """On SQLite alone."""
    store = Store.open(f"sqlite:///{tmp_path / 'jobs.db'}", clock)
    yield store
    store.close()


def test_a_job_comes_back_as_it_was_given(store: Store) -> None:
    spec = JobSpec(name="mine", labels={"team": "a"}, seed=7)
    job = store.create(spec)
    assert store.get(job.id) == job
    assert (job.spec, job.state, job.fence, job.attempts) == (spec, State.QUEUED, 0, 0)
    assert job.labels == {"team": "a"}
    assert [t.state for t in store.transitions(job.id)] == [State.QUEUED]
    assert store.get("other-aaaaaa") is None


def test_ids_match_the_pattern_for_every_name() -> None:
    for name in ("a", "a" * 63, "a" * 55 + "--------"):
        made = new_job_id(name)
        assert ID_PATTERN.match(made), made
        assert re.search(r"[a-z0-9]-[a-z2-7]{6}$", made), made


def test_a_move_is_logged_with_reason_fence_and_time(store: Store, clock: Clock) -> None:
    job = store.move(store.create(JobSpec()), State.ADMITTED)
    clock.now = 1005.0
    started = store.move(job, State.STARTING, fence=1, submission_id="x-1")
    assert (started.fence, started.attempts, started.submission_id) == (1, 1, "x-1")
    assert (started.state_since, started.started_at, started.ended_at) == (1005.0, 1005.0, None)
    clock.now = 1009.0
    failed = store.move(started, State.FAILED, reason=Reason("c", "m", "replica-0"))
    assert failed.reason == Reason("c", "m", "replica-0")
    assert (failed.started_at, failed.ended_at) == (1005.0, 1009.0)
    log = store.transitions(job.id)
    assert [(t.state, t.fence, t.time) for t in log[2:]] == [(State.STARTING, 1, 1005.0), (State.FAILED, 1, 1009.0)]
    assert log[3].reason == Reason("c", "m", "replica-0")


def test_an_illegal_move_changes_nothing(store: Store) -> None:
    job = store.create(JobSpec())
    with pytest.raises(IllegalTransition):
        store.move(job, State.RUNNING)
    assert store.get(job.id) == job


def test_a_stale_view_loses_by_state_and_by_fence(store: Store) -> None:
    job = store.create(JobSpec())
    admitted = store.move(job, State.ADMITTED)
    with pytest.raises(LostRace):
        store.move(job, State.CANCELLED)
    first = store.move(admitted, State.STARTING, fence=1)
    again = store.move(store.move(first, State.RECOVERING), State.STARTING, fence=2)
    with pytest.raises(LostRace):
        store.move(first, State.RUNNING)  # the same state, another attempt
    assert store.get(job.id) == again
    assert len(store.transitions(job.id)) == 5


def test_of_many_movers_one_wins_also_across_processes(store: Store, store_url: str) -> None:
    url, job = store_url, store.create(JobSpec())
    program = (
        "import sys\nfrom jobs.status import State\nfrom jobs.store import Store\n"
        "from jobs.store_terms import LostRace\n"
        f"store = Store.open({url!r}); job = store.get({job.id!r}); print('ready', flush=True); sys.stdin.readline()\n"
        "try:\n    store.move(job, State.ADMITTED); print('won')\nexcept LostRace:\n    print('lost')\n"
    )
    others = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for other in others:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"

    def move(_: int) -> bool:
        mine = Store.open(url)
        try:
            mine.move(job, State.ADMITTED)
        except LostRace:
            return False
        finally:
            mine.close()
        return True

    with ThreadPoolExecutor(8) as pool:
        local = pool.map(move, range(16))
        remote = [other.communicate("go\n")[0].strip() for other in others]
        assert sum(local) + remote.count("won") == 1, remote
    assert [t.state for t in store.transitions(job.id)] == [State.QUEUED, State.ADMITTED]


def test_many_openers_at_once_make_one_schema(store_url: str) -> None:
    url = store_url
    program = f"from jobs.store import Store; Store.open({url!r}).close()"
    others = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        for store in pool.map(lambda _: Store.open(url), range(4)):
            assert store.in_states(list(State)) == []
            store.close()
    assert [other.communicate()[1] for other in others] == [""] * 2


def test_pages_are_newest_first_and_never_skip(store: Store) -> None:
    jobs = [store.create(JobSpec()) for _ in range(5)]
    store.move(jobs[1], State.ADMITTED)
    first = store.page(limit=2)
    assert [j.id for j in first] == [jobs[4].id, jobs[3].id]
    assert [j.id for j in store.page(limit=9, before_seq=first[-1].seq)] == [jobs[2].id, jobs[1].id, jobs[0].id]
    assert len(store.page(limit=9, before_seq=2**63 - 1)) == 5
    assert [j.id for j in store.page(limit=9, only=Filter(states=[State.ADMITTED]))] == [jobs[1].id]
    assert [j.id for j in store.in_states([State.QUEUED])] == [jobs[0].id, jobs[2].id, jobs[3].id, jobs[4].id]


def test_changes_are_numbered_over_all_jobs_and_filtered_by_owner_or_job(store: Store) -> None:
    assert store.newest_change() == 0
    assert store.changes(2**63 - 1) == []
    mine, bobs = store.create(JobSpec()), store.submit(Submission(JobSpec(), Caller("bob", Scope.WRITE)))
    store.move(mine, State.FAILED, reason=Reason("storage", "gone"))

    def told(after_seq: int = 0, **only: Any) -> list[tuple[str, State]]:
        return [(c.job_id, c.transition.state) for c in store.changes(after_seq, **only)]

    everything = [(mine.id, State.QUEUED), (bobs.id, State.QUEUED), (mine.id, State.FAILED)]
    assert told() == everything
    assert told(limit=2) == everything[:2]
    assert told(owner="bob") == told(job_id=bobs.id) == everything[1:2]
    assert told(owner="ann") == told(job_id=mine.id, owner="bob") == []
    first, second, third = store.changes(0)
    assert first.seq < second.seq < third.seq == store.newest_change()
    assert told(second.seq) == everything[2:]
    assert told(third.seq) == []
    assert third.transition == store.transitions(mine.id)[-1]


def test_no_change_comes_to_be_seen_after_a_later_one(store: Store) -> None:
    """Whoever listens goes on after the last number it saw."""
    slow, quick = store.create(JobSpec()), store.create(JobSpec())
    seen = store.newest_change()
    with ThreadPoolExecutor(1) as other:
        with store._database.transaction(write=True) as connection:
            log_change(connection, slow.id, State.ADMITTED, 1, None, 0.0)
            moved = other.submit(store.move, quick, State.ADMITTED)
            with pytest.raises(TimeoutError):
                moved.result(timeout=0.3)
            assert store.changes(seen) == []
        moved.result(timeout=10)
    assert [change.job_id for change in store.changes(seen)] == [slow.id, quick.id]


def test_no_number_of_a_change_is_given_twice(store: Store) -> None:
    """Though the job with the newest is deleted: whoever has seen that one would miss the next."""
    store.create(JobSpec())
    last = store.move(store.create(JobSpec()), State.CANCELLED)
    seen = store.newest_change()
    store.delete(last, by=LOCAL)
    following = store.create(JobSpec())
    assert [change.job_id for change in store.changes(seen)] == [following.id]


def test_a_lease_is_renewed_kept_and_passed_on_with_a_higher_fence(store: Store, clock: Clock) -> None:
    first = store.lease.acquire("a", 5.0)
    assert first is not None
    assert store.lease.acquire("b", 5.0) is None
    clock.now += 4.0
    assert store.lease.acquire("a", 5.0) == first
    clock.now += 4.0
    assert store.lease.acquire("b", 5.0) is None
    assert store.lease.is_held()
    clock.now += 1.5
    assert not store.lease.is_held()
    second = store.lease.acquire("b", 5.0)
    assert second is not None
    assert second > first
    assert store.lease.acquire("a", 5.0) is None
    store.lease.release("b")
    third = store.lease.acquire("a", 5.0)
    assert third is not None
    assert third > second


def test_changes_under_a_lease_that_has_moved_on_are_refused(store: Store, clock: Clock) -> None:
    job = store.create(JobSpec())
    old = store.lease.acquire("a", 5.0)
    clock.now += 6.0
    new = store.lease.acquire("b", 5.0)
    with pytest.raises(LostRace):
        store.move(job, State.ADMITTED, lease=old)
    with pytest.raises(LostRace):
        store.explain_wait(job, Reason("queued", "waits"), lease=old)
    assert store.get(job.id) == job
    assert store.move(job, State.ADMITTED, lease=new).state is State.ADMITTED


def test_a_wait_is_explained_without_a_transition(store: Store) -> None:
    job = store.create(JobSpec())
    store.explain_wait(job, Reason("no_room_yet", "waits for room"))
    found = store.get(job.id)
    assert found is not None
    assert found.reason == Reason("no_room_yet", "waits for room")
    assert len(store.transitions(job.id)) == 1


def test_jobs_are_alike_that_have_succeeded_with_steps_of_the_same_kind(store: Store) -> None:
    bob = Caller("bob", Scope.WRITE)
    asked = {
        "a": Submission(spec(name="a", training={"steps": 5}), estimate={"steps": 5}),
        "b": Submission(spec(name="b", training={"steps": 9}), bob),
        "other": Submission(spec(name="other", training={"batch_size": 7})),
        "child": Submission(spec(name="child"), parent="a"),
        "failed": Submission(spec(name="failed")),
        "queued": Submission(spec(name="queued")),
    }
    made = {}
    for name, one in asked.items():
        made[name] = store.submit(one if one.parent is None else replace(one, parent=made["a"].id))
    for name, end in [
        ("a", State.SUCCEEDED),
        ("b", State.SUCCEEDED),
        ("other", State.SUCCEEDED),
        ("child", State.SUCCEEDED),
        ("failed", State.FAILED),
    ]:
        job = store.move(store.move(made[name], State.ADMITTED), State.STARTING, fence=1)
        store.move(store.move(job, State.RUNNING), end)
    like = made["a"].likeness
    assert like is not None
    assert [job.name for job in store.alike(like, owner=None, limit=9)] == ["b", "a"]
    assert [job.name for job in store.alike(like, owner=None, limit=1)] == ["b"]
    assert [job.name for job in store.alike(like, owner="bob", limit=9)] == ["b"]
    assert [job.estimate for job in store.alike(like, owner="local", limit=9)] == [{"steps": 5}]


def test_a_schema_that_is_the_newest_is_left_as_it_is(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process that opens the store would read all migrations for nothing."""
    engine = make_engine(store_url)
    migrate(engine)
    monkeypatch.setattr("jobs.store_engine.command", None)
    migrate(engine)
    migrate(engine, "head")
    with pytest.raises(AttributeError):
        migrate(engine, "0001")
    engine.dispose()


def test_jobs_from_before_there_were_owners_are_kept(store_url: str) -> None:
    """With data in: what is new is filled in."""
    url = store_url
    engine = make_engine(url)
    migrate(engine, "0001")
    given = spec(name="old", replicas={"count": 3, "cpus": 0.5, "gpus": 0.25}, labels={"team": "a"})
    with engine.execution_options(codistill_write=True).begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO jobs (id, name, labels, spec, state, fence, attempts, created_at, updated_at, state_since)"
                " VALUES ('old-aaaaaa', 'old', :labels, :spec, 'RUNNING', 1, 1, 1.0, 2.0, 3.0)"
            ),
            {"labels": '{"team": "a"}', "spec": json.dumps(given.model_dump(mode="json", exclude={"priority"}))},
        )
        connection.exec_driver_sql(
            "INSERT INTO transitions (job_id, state, fence, time) VALUES ('old-aaaaaa', 'QUEUED', 0, 1)"
        )
    engine.dispose()
    store = Store.open(url)
    (job,) = store.in_states([State.RUNNING])
    assert (job.id, job.owner, job.parent, job.priority) == ("old-aaaaaa", "local", None, 0)
    assert (job.ranks, job.cpus, job.gpus) == (3, 0.5, 0.25)
    assert job.spec == given
    assert (job.likeness, job.estimate) == (None, None)
    assert [t.state for t in store.transitions(job.id)] == [State.QUEUED]
    assert store.move(job, State.SUCCEEDED).state is State.SUCCEEDED
    store.close()


@pytest.mark.parametrize(
    ("only", "found"),
    [
        (Filter(labels={"team": "a"}), "ac"),
        (Filter(labels={"team": "a", "x.y": "1"}), "c"),
        (Filter(labels={"team": "z"}), ""),
        (Filter(owner="bob"), "b"),
        (Filter(name="c"), "c"),
        (Filter(parent="a"), "b"),
        (Filter(states=[State.QUEUED, State.ADMITTED]), "abc"),
        (Filter(states=[State.ADMITTED]), "a"),
        (Filter(created_from=1010.0), "bc"),
        (Filter(created_from=1010.0, created_before=1020.0), "b"),
        (Filter(name="a\0"), ""),
        (Filter(labels={"team": "a\0"}), ""),
        (Filter(labels={'team"x': "1"}), ""),
        (Filter(labels={"team\\": "a"}), ""),
        (Filter(), "abc"),
    ],
)
def test_filters(store: Store, clock: Clock, only: Filter, found: str) -> None:
    bob = Caller("bob", Scope.WRITE)
    first = store.move(store.submit(Submission(JobSpec(name="a", labels={"team": "a"}))), State.ADMITTED)
    clock.now += 10
    store.submit(Submission(JobSpec(name="b", labels={"team": "b"}), bob, parent=first.id))
    clock.now += 10
    store.submit(Submission(JobSpec(name="c", labels={"team": "a", "x.y": "1"})))
    only = replace(only, parent=only.parent and first.id)
    assert "".join(sorted(job.name for job in store.page(limit=9, only=only))) == found


def test_a_manager_that_is_slow_cannot_write_after_the_lease_has_moved_on(store: Store, clock: Clock) -> None:
    """Its transaction keeps the lease where it is: whoever wants it waits, or it is refused."""
    job = store.create(JobSpec())
    old = store.lease.acquire("a", 5.0)
    clock.now += 6.0
    with ThreadPoolExecutor(1) as pool:
        with store._database.transaction(write=True) as connection:
            compare_and_set(connection, job, {"state": State.ADMITTED.value}, old)
            taken = pool.submit(store.lease.acquire, "b", 5.0)
            with pytest.raises(TimeoutError):
                taken.result(0.2)
        new = taken.result(9)
    assert new is not None
    assert old is not None
    assert new > old


def test_of_many_submitters_as_many_get_in_as_may(store: Store) -> None:
    """Counting and adding are one step: none slips in between."""

    def submit(_: int) -> bool:
        try:
            store.submit(Submission(JobSpec()), Quota(queued=5))
        except QueueFull:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(submit, range(24))) == 5
    assert len(store.page(limit=99)) == 5


def test_a_store_of_a_newer_release_is_one_sentence(store: Store, store_url: str) -> None:
    with store._database.transaction(write=True) as connection:
        newest = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one()
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="written by a newer codistill"):
        Store.open(store_url)
    with store._database.transaction(write=True) as connection:
        connection.execute(sa.text(f"UPDATE alembic_version SET version_num = '{newest}'"))


# ---------------------------------------------------------------- SQLite alone


def test_a_store_that_gave_numbers_twice_keeps_those_it_has(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    engine = make_engine(url)
    migrate(engine, "0007")
    with engine.execution_options(codistill_write=True).begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO jobs (id, name, labels, spec, state, fence, attempts, created_at, updated_at, state_since)"
            " VALUES ('old-aaaaaa', 'old', '{}', '{}', 'CANCELLED', 0, 0, 1.0, 2.0, 3.0)"
        )
        connection.exec_driver_sql(
            "INSERT INTO transitions (seq, job_id, state, fence, reason, time) VALUES"
            " (3, 'old-aaaaaa', 'QUEUED', 0, NULL, 1), (9, 'old-aaaaaa', 'CANCELLED', 0,"
            """ '{"code": "c", "message": "m", "replica": null}', 3)"""
        )
    inspected = sa.inspect(engine)
    before = [inspected.get_indexes("transitions"), inspected.get_foreign_keys("transitions")]
    store = Store.open(url)
    inspected = sa.inspect(engine)
    assert [inspected.get_indexes("transitions"), inspected.get_foreign_keys("transitions")] == before
    changes = store.changes(0)
    assert [(c.seq, c.transition.state) for c in changes] == [(3, State.QUEUED), (9, State.CANCELLED)]
    assert [c.transition.reason for c in changes] == [None, Reason("c", "m")]
    (job,) = store.page(limit=9)
    store.delete(job, by=LOCAL)
    store.create(JobSpec())
    assert [c.seq for c in store.changes(0)] == [10]
    store.close()
    engine.dispose()


def test_durability_settings(on_disk: Store, tmp_path: Path) -> None:
    with on_disk._database._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 10_000


def test_a_missing_directory_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"the store's directory .*nowhere does not exist; create it"):
        Store.open(f"sqlite:///{tmp_path / 'nowhere' / 'jobs.db'}")


@pytest.mark.parametrize(("url", "says"), [("nonsense", "is not a database URL"), ("mysql://h/d", "not supported")])
def test_a_bad_url_is_one_sentence(url: str, says: str) -> None:
    with pytest.raises(StoreError, match=says):
        Store.open(url)


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").write_bytes(b"something else, and long enough to be looked at " * 30)
    with pytest.raises(StoreError, match="is not a readable store; move it away"):
        Store.open(f"sqlite:///{tmp_path / 'jobs.db'}")


def test_a_full_disk_is_one_sentence_and_nothing_is_half_written(on_disk: Store, tmp_path: Path) -> None:
    on_disk.create(JobSpec())
    with on_disk._database._engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    # What SQLite does when the disk is full, without filling one.
    from sqlalchemy import event

    def limit(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute(f"PRAGMA max_page_count={pages}")

    event.listen(on_disk._database._engine, "connect", limit)
    on_disk.close()
    with pytest.raises(StoreError, match="the disk is full; free some space"):
        [on_disk.create(JobSpec(labels={"long": "x" * 200})) for _ in range(50)]
    jobs = on_disk.page(limit=100)
    assert all(len(on_disk.transitions(job.id)) == 1 for job in jobs)
    assert on_disk.move(jobs[0], State.CANCELLED).state is State.CANCELLED  # a smaller change still goes through


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_directory_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(StoreError, match="cannot be"):
        Store.open(f"sqlite:///{tmp_path / 'closed' / 'jobs.db'}")
