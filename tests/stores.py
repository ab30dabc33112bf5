"""Stores for the tests: files of SQLite, or, with CODISTILL_TEST_STORE=postgresql, databases of one real server.

`make test-postgres` runs all tests of the service so. What is about SQLite's own file says its address itself.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.postgres import Postgres

KIND = os.environ.get("CODISTILL_TEST_STORE") or "sqlite"
KINDS = ("sqlite", "postgresql")
_running: list[Postgres] = []


def new_store(directory: Path) -> str:
    """The URL of a store without jobs of the kind that was asked for. A file lies in `directory`, and has its schema:
    to make that takes longer than most tests."""
    if KIND != "sqlite":
        return shared_server().empty()
    shutil.copyfile(_made_once(), directory / "jobs.db")
    return sqlite_store(directory)


def sqlite_store(directory: Path) -> str:
    """The URL of a file in `directory`, which is made when it is opened."""
    return f"sqlite:///{directory / 'jobs.db'}"


@functools.cache
def _made_once() -> Path:
    from jobs.store import Store

    directory = Path(tempfile.mkdtemp(prefix="codistill-store-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    Store.open(sqlite_store(directory)).close()
    return directory / "jobs.db"


def shared_server() -> Postgres:
    """One for all tests, until `close`."""
    from tests.postgres import start

    if not _running:
        _running.append(start(required=KIND == "postgresql"))
    return _running[0]


def close() -> None:
    while _running:
        _running.pop().close()
