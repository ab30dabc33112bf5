"""The database behind the store: how it is opened, and brought to the newest schema."""

from __future__ import annotations

import functools
import sqlite3
import threading
import time
from enum import IntEnum
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError

from jobs.errors import StoreError
from jobs.store_errors import explain

BUSY_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5
POSTGRES_SESSION = {
    # An answer of 202 promises that the job is on the disk, whatever the server's own default.
    "synchronous_commit": "on",
    "lock_timeout": f"{BUSY_TIMEOUT_S:.0f}s",
    "statement_timeout": "30s",
    # A process that was frozen in the middle of a transaction must not hold up the others for ever.
    "idle_in_transaction_session_timeout": "60s",
}
_ALEMBIC = threading.Lock()  # Alembic keeps the migration under way in a global


class Turn(IntEnum):
    """What PostgreSQL is to let only one transaction do at a time, in any process, by the number of its lock."""

    MIGRATE = 0xC0D15710
    SUBMIT = 0xC0D15711
    """Counting what waits, and adding to it."""
    NUMBER = 0xC0D15712
    """Numbering a transition."""


def wait_for(turn: Turn, connection: sa.Connection) -> None:
    """Keep all others from it until the transaction has ended. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(turn.value)))


def make_engine(url: str) -> sa.Engine:
    """An engine for `url`. Raises `StoreError` for a URL that is none or of another kind of database, a directory that
    does not exist, or a driver that is not installed."""
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        # Not shown: it may hold a password.
        example = "sqlite:////var/lib/codistill/jobs.db or postgresql+psycopg://user@host/codistill"
        raise StoreError(f"CODISTILL_DATABASE is not a database URL; e.g. {example}") from None
    match parsed.get_backend_name():
        case "sqlite":
            return _sqlite(parsed)
        case "postgresql":
            return _postgres(parsed.set(drivername="postgresql+psycopg"))
        case other:
            raise StoreError(f"databases of kind {other!r} are not supported; use sqlite or postgresql")


# ---------------------------------------------------------------- PostgreSQL


def _postgres(url: sa.URL) -> sa.Engine:
    options = " ".join(f"-c {name}={value}" for name, value in POSTGRES_SESSION.items())
    try:
        return sa.create_engine(
            url,
            # Compare-and-set and the counting of rows are made for this level: each statement sees what was committed.
            isolation_level="READ COMMITTED",
            # A connection that broke while nobody used it is replaced before the next transaction begins.
            pool_pre_ping=True,
            connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "codistill", "options": options},
        )
    except ModuleNotFoundError as error:
        message = f"a PostgreSQL store needs {error.name}, not installed here: pip install 'codistill[postgres]'"
        raise StoreError(message) from None


# ---------------------------------------------------------------- SQLite


def _sqlite(url: sa.URL) -> sa.Engine:
    if url.database and not Path(url.database).parent.is_dir():
        raise StoreError(f"the store's directory {Path(url.database).parent} does not exist; create it")
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: object) -> None:
    # The driver would begin transactions by itself, and too late for a compare-and-set: `_begin_sqlite` does.
    connection.isolation_level = None
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()
    _switch_to_wal(connection)


def _switch_to_wal(connection: Any) -> None:
    # Of several openers of a new file one may switch; the others are refused at once, whatever the busy timeout.
    give_up = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.02)
        else:
            return


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes the lock first: a read that turns into a write is refused at once, not after the busy timeout.
    write = connection.get_execution_options().get("codistill_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


# ---------------------------------------------------------------- the schema


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


@functools.cache
def newest_revision() -> str | None:
    """Of the schema, as this release has it."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def migrate(engine: sa.Engine, to: str = "head") -> None:
    """Bring the schema to its newest version, whole or not at all; of several openers one does it. Raises
    `StoreError`."""
    config = _config()
    try:
        with _ALEMBIC, engine.execution_options(codistill_write=True).begin() as connection:
            wait_for(Turn.MIGRATE, connection)
            if to == "head" and MigrationContext.configure(connection).get_current_revision() == newest_revision():
                return
            config.attributes["connection"] = connection
            command.upgrade(config, to)
    except DBAPIError as error:
        raise explain(engine.url, error) from error
    except CommandError as error:
        raise StoreError(f"the store was written by a newer codistill ({error}); install that, or a backup") from error
