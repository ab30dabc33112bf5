"""Stores for the tests: files of SQLite, or, with CODISTILL_TEST_STORE=postgresql, databases of one real server.

`make test-postgres` runs all tests of the service so. What is about SQLite's own file says its address itself.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.postgres import Postgres

KIND = os.environ.get("CODISTILL_TEST_STORE") or "sqlite"
KINDS = ("sqlite", "postgresql")
_running: list[Postgres] = []


def new_store(directory: Path) -> str:
    """The URL of an empty store of the kind that was asked for; a file lies in `directory`."""
    return sqlite_store(directory) if KIND == "sqlite" else shared_server().empty()


def sqlite_store(directory: Path) -> str:
    return f"sqlite:///{directory / 'jobs.db'}"


def shared_server() -> Postgres:
    """One for all tests, until `close`."""
    from tests.postgres import start

    if not _running:
        _running.append(start(required=KIND == "postgresql"))
    return _running[0]


def close() -> None:
    while _running:
        _running.pop().close()
