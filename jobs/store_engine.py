"""The database behind the store: how it is opened, brought to the newest schema, and what its errors mean."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError

from jobs.errors import StoreError

BUSY_TIMEOUT_S = 10.0
_ALEMBIC = threading.Lock()  # Alembic keeps the migration under way in a global


def make_engine(url: str) -> sa.Engine:
    """An engine for `url`. Raises `StoreError` for a URL that is none or a directory that does not exist."""
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        raise StoreError(f"{url!r} is not a database URL; e.g. sqlite:////var/lib/codistill/jobs.db") from None
    if parsed.get_backend_name() != "sqlite":
        raise StoreError(f"databases of kind {parsed.get_backend_name()!r} are not supported; use sqlite")
    if parsed.database and not Path(parsed.database).parent.is_dir():
        raise StoreError(f"the store's directory {Path(parsed.database).parent} does not exist; create it")
    engine = sa.create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_S})
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


def migrate(engine: sa.Engine, to: str = "head") -> None:
    """Bring the schema to its newest version, whole or not at all; of several openers one does it."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    try:
        with _ALEMBIC, engine.execution_options(codistill_write=True).begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, to)
    except DBAPIError as error:
        raise explain(engine.url, error) from error


def explain(url: sa.URL, error: DBAPIError) -> StoreError:
    """What a driver's error means, in one sentence."""
    where, text = url.database or url.render_as_string(hide_password=True), str(error.orig).lower()
    if "full" in text:
        return StoreError(f"the store {where} cannot be written: the disk is full; free some space")
    if "readonly" in text or "read-only" in text or "permission" in text:
        return StoreError(f"the store {where} cannot be written: no permission; check its owner and mode")
    if "unable to open" in text:
        return StoreError(f"the store {where} cannot be opened; its directory must exist and be writable")
    if "locked" in text:
        return StoreError(f"the store {where} has been locked for {BUSY_TIMEOUT_S:g} s by another process")
    if "not a database" in text or "malformed" in text:
        return StoreError(f"{where} is not a readable store; move it away or restore a backup")
    return StoreError(f"the store {where} failed: {error.orig}")
