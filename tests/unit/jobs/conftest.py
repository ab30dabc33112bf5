"""Stores for the tests, a file of SQLite or a database of a real PostgreSQL server that all of them share; and the
command in a home of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs import cli
from jobs.store import Store
from tests.postgres import Postgres
from tests.stores import shared_server, sqlite_store
from tests.unit.jobs.fakes import Clock


@pytest.fixture(scope="session")
def postgres() -> Postgres:
    return shared_server()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return sqlite_store(tmp_path)
    server: Postgres = request.getfixturevalue("postgres")
    return server.empty()


@pytest.fixture
def clock() -> Clock:
    return Clock(10_000.0)


@pytest.fixture
def store(store_url: str, clock: Clock) -> Iterator[Store]:
    made = Store.open(store_url, clock)
    yield made
    made.close()


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The command in a home of its own: exit code, standard output, standard error."""
    monkeypatch.setenv("CODISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CODISTILL_DATABASE", raising=False)

    def run(*words: str) -> tuple[int, str, str]:
        code = cli.run(list(words))
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return run
