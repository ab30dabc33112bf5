"""What is PostgreSQL's own: what its errors mean, connections that break, and what a session is told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from codistill.spec import JobSpec
from jobs.errors import StoreError
from jobs.serve_settings import Listen, Settings
from jobs.store import Store
from jobs.store_engine import Turn, make_engine
from jobs.store_errors import meaning_of_postgres, meaning_of_sqlite, place_of
from jobs.tables import JOBS
from tests.postgres import Postgres


@pytest.mark.parametrize(
    ("state", "text", "says"),
    [
        (None, "connection failed: FATAL: password authentication failed for user", "does not let this user in"),
        (None, "FATAL:  sorry, too many clients already", "max_connections"),
        ("53300", "", "max_connections"),
        (None, 'FATAL:  database "nowhere" does not exist', "createdb"),
        (None, "connection to server at 10.0.0.1, port 5432 failed: Connection refused", "does not answer"),
        (None, "[Errno -2] Name or service not known: could not translate host name", "does not answer"),
        (None, "connection timeout expired", "did not answer in time"),
        ("57P01", "terminating connection due to administrator command", "does not answer"),
        ("25006", "cannot execute INSERT in a read-only transaction", "is read-only"),
        ("53100", "could not extend file", "disk is full"),
        ("42501", "permission denied for schema public", "grant"),
        ("55P03", "canceling statement due to lock timeout", "pg_stat_activity"),
        ("57014", "canceling statement due to statement timeout", "pg_stat_activity"),
        ("42P01", 'relation "jobs" does not exist', "failed: relation"),
    ],
)
def test_what_an_error_means(state: str | None, text: str, says: str) -> None:
    assert says in meaning_of_postgres(state, text)


def test_what_no_rule_knows_is_told_as_it_is() -> None:
    assert meaning_of_postgres("XX000", "odd") == "failed: odd [XX000]"
    assert meaning_of_sqlite("odd") == "failed: odd"


def test_a_place_is_named_without_the_password() -> None:
    url = sa.make_url("postgresql+psycopg://ann:secret@db.example:6000/codistill")
    assert place_of(url) == "codistill at db.example:6000"
    listen = Listen("127.0.0.1", 8700, (), needs_token=False)
    assert "secret" not in repr(Settings("postgresql://ann:secret@h/d", "/runs", "/data", listen))


def test_a_plain_postgresql_url_has_the_driver_that_is_installed() -> None:
    assert make_engine("postgresql://ann@h/d").url.drivername == "postgresql+psycopg"


def test_a_wrong_password_and_a_server_that_is_away_are_sentences(postgres: Postgres) -> None:
    with pytest.raises(StoreError, match="does not let this user in") as caught:
        Store.open(postgres.url("postgres", password="not-it"))
    assert "not-it" not in str(caught.value)
    with pytest.raises(StoreError, match=r"nowhere at .* has no such database"):
        Store.open(postgres.url("nowhere"))
    with pytest.raises(StoreError, match="does not answer; start it"):
        Store.open(f"postgresql://a:b@/jobs?host={postgres.root / 'elsewhere'}")
    with pytest.raises(StoreError, match=r"at 127\.0\.0\.1:9 does not answer"):
        Store.open("postgresql://a:b@127.0.0.1:9/jobs")


def test_a_connection_that_broke_is_replaced(postgres: Postgres) -> None:
    store = Store.open(postgres.empty())
    job = store.create(JobSpec())
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'codistill'"
    postgres.execute(cut)
    assert store.get(job.id) == job

    def broken_in_the_middle() -> None:
        with store._database.transaction(write=True) as connection:
            connection.execute(sa.update(JOBS).values(priority=9))
            postgres.execute(cut)
            connection.execute(sa.text("SELECT 1"))

    with pytest.raises(StoreError, match="does not answer"):
        broken_in_the_middle()
    assert store.get(job.id) == job
    store.close()


def test_of_two_openers_one_waits_for_the_other(postgres: Postgres) -> None:
    url = postgres.empty()
    engine = make_engine(url)
    with ThreadPoolExecutor(1) as pool, engine.begin() as connection:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(Turn.MIGRATE.value)))
        opened = pool.submit(Store.open, url)
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while connection.exec_driver_sql(waiting).scalar_one() == 0:
            assert not opened.done()
        connection.rollback()
        opened.result(9).close()
    engine.dispose()


def test_a_read_only_server_is_one_sentence(postgres: Postgres) -> None:
    url = postgres.empty()
    Store.open(url).close()
    name = sa.make_url(url).database
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    store = Store.open(url)
    with pytest.raises(StoreError, match="is read-only"):
        store.create(JobSpec())
    store.close()


def test_no_connection_left_is_one_sentence(postgres: Postgres) -> None:
    url = postgres.empty()
    postgres.execute(f"ALTER DATABASE {sa.make_url(url).database} CONNECTION LIMIT 1")
    postgres.execute("CREATE ROLE few LOGIN PASSWORD 'few' CONNECTION LIMIT 0")
    with pytest.raises(StoreError, match="has no connection left; raise its max_connections"):
        Store.open(postgres.url("postgres", user="few", password="few"))


def test_a_session_is_told_what_it_promises(postgres: Postgres) -> None:
    url = postgres.empty()
    postgres.execute(f"ALTER DATABASE {sa.make_url(url).database} SET synchronous_commit = off")
    postgres.execute(f"ALTER DATABASE {sa.make_url(url).database} SET default_transaction_isolation = 'serializable'")
    store = Store.open(url)
    with store._database.transaction() as connection:
        found = [
            connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in ("synchronous_commit", "transaction_isolation", "lock_timeout")
        ]
    assert found == ["on", "read committed", "10s"]
    store.close()
