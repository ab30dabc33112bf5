"""A connection to the database behind the service, whose errors are sentences."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionFree

from jobs.errors import StoreError
from jobs.store_engine import Turn, make_engine, migrate, wait_for
from jobs.store_errors import explain, place_of


class Database:
    """Transactions on SQLite or PostgreSQL."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine, self.clock = engine, clock

    @staticmethod
    def open(url: str, clock: Callable[[], float] = time.time) -> Database:
        """Connect (e.g. `sqlite:////var/lib/codistill/jobs.db`, `postgresql+psycopg://user:password@host/codistill`)
        and bring the schema to its newest version. Raises `StoreError`."""
        engine = make_engine(url)
        try:
            migrate(engine)
        except StoreError:
            engine.dispose()
            raise
        return Database(engine, clock)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def transaction(self, *, write: bool = False) -> Generator[sa.Connection]:
        """Whole or not at all. Blocks on the disk; raises `StoreError`."""
        try:
            with self._engine.execution_options(codistill_write=write).begin() as connection:
                yield connection
        except DBAPIError as error:
            raise explain(self._engine.url, error) from error
        except NoConnectionFree as error:
            where = place_of(self._engine.url)
            raise StoreError(f"the store {where} is too slow: all connections are in use; try again") from error

    @contextmanager
    def one_at_a_time(self) -> Generator[sa.Connection]:
        """A transaction beside which no other of this kind runs, in any process: for decisions that count rows."""
        with self.transaction(write=True) as connection:
            wait_for(Turn.SUBMIT, connection)
            yield connection
