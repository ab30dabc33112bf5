"""Copies of a store that is in use, and the way back. SQLite only: PostgreSQL has tools of its own."""

from __future__ import annotations

import math
import os
import shlex
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from jobs.errors import StoreError

LOG_ENDINGS = ("-wal", "-shm")
"""Of the files beside a store that belong to it while it is used, or was until somebody was killed."""


@dataclass(frozen=True)
class Kept:
    """What a store was before another was put in its place."""

    path: Path
    as_it_was: bool
    """Not a copy, which a damaged store does not allow, but its files, with what is only in the write-ahead log."""


def back_up(source: Path, target: Path) -> int:
    """Copy the store `source`, whole and as of one moment, to the new file `target`, while others write to it. How many
    jobs are in it. Raises `StoreError`."""
    if not source.is_file():
        raise StoreError(f"there is no store {source} to back up; CODISTILL_DATABASE or CODISTILL_HOME name another")
    if target.exists():
        raise StoreError(f"{target} exists already; name a new file")
    if not target.parent.is_dir():
        raise StoreError(f"the directory {target.parent} does not exist; create it")
    part = target.with_name(target.name + ".part")
    try:
        # A copy has tokens' digests and everybody's specs in it: for this user alone, from the start.
        os.close(os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600))
        with closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as old, closing(sqlite3.connect(part)) as new:
            old.backup(new)
            new.execute("PRAGMA journal_mode=DELETE").close()
        count = jobs_in(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"cannot back up {source} to {target}: {error}; is there room and permission?") from error
    finally:
        part.unlink(missing_ok=True)
    return count


def put_back(backup: Path, store: Path) -> Kept | None:
    """Make `store` what `backup` has; where what was there is kept, if anything was. Nobody may be using it. Raises
    `StoreError`, and then nothing has changed."""
    jobs_in(backup)
    _refuse_served(store)
    part = store.with_name(store.name + ".part")
    aside = store.with_name(f"{store.name}.before-{time.strftime('%Y%m%dT%H%M%S')}")
    try:
        part.unlink(missing_ok=True)
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with closing(sqlite3.connect(f"file:{backup}?mode=ro", uri=True)) as old, closing(sqlite3.connect(part)) as new:
            old.backup(new)
        kept = _keep(store, aside) if store.exists() else None
        for ending in LOG_ENDINGS:  # of the old file: they would be taken for the new one's
            store.with_name(store.name + ending).unlink(missing_ok=True)
        part.replace(store)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"cannot restore {store} from {backup}: {error}; is there room and permission?") from error
    finally:
        part.unlink(missing_ok=True)
    return kept


def _keep(store: Path, aside: Path) -> Kept:
    if aside.exists():
        raise StoreError(f"{aside} exists already; wait a second")
    try:
        back_up(store, aside)  # with what is only in its write-ahead log
    except StoreError:
        for ending in (*LOG_ENDINGS, ""):
            path = store.with_name(store.name + ending)
            if path.exists():
                path.rename(aside.with_name(aside.name + ending))
        return Kept(aside, as_it_was=True)
    return Kept(aside, as_it_was=False)


def _refuse_served(store: Path) -> None:
    """Raise `StoreError` while a manager holds the lease: it goes on when the command that started it is killed."""
    try:
        with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
            row = connection.execute("SELECT expires_at FROM manager_lease").fetchone()
    except sqlite3.Error:  # not there, or so damaged that no service works with it
        return
    left_s = 0.0 if row is None else row[0] - time.time()
    if left_s > 0:
        raise StoreError(
            f"a service is at work with {store}, though no codistill serve from here runs: end it with codistill down,"
            " or with codistill serve and then Ctrl-C, which leaves its jobs running; if it has just been killed, wait"
            f" {math.ceil(left_s)} s"
        )


def jobs_in(path: Path) -> int:
    """How many jobs a store has. Raises `StoreError` for a file that is none, or damaged."""
    if not path.is_file():
        raise StoreError(f"there is no file {path}; codistill backup FILE writes one")
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            (sound,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if sound != "ok":
                raise StoreError(f"{path} is damaged ({sound}); take an older backup")
            connection.execute("SELECT version_num FROM alembic_version").fetchone()
            (count,) = connection.execute("SELECT count(*) FROM jobs").fetchone()
            return int(count)
    except sqlite3.Error as error:
        raise StoreError(
            f"{path} is not a store of codistill ({error}); name a file that codistill backup wrote"
        ) from error


def postgres_command(url: str, file: Path, *, restore: bool) -> str:
    """What a shell should run instead, for a PostgreSQL store; without the password, which it will ask for."""
    parsed = sa.make_url(url)
    where = {
        "--host": parsed.host or parsed.query.get("host"),
        "--port": parsed.port or parsed.query.get("port"),
        "--username": parsed.username,
        "--dbname": parsed.database,
    }
    words = [f"{name}={value}" for name, value in where.items() if value]
    if restore:
        return shlex.join(["pg_restore", *words, "--clean", "--if-exists", "--single-transaction", str(file)])
    return shlex.join(["pg_dump", *words, "--format=custom", f"--file={file}"])
