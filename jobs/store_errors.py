"""What an error of a database's driver means: one sentence that says what, where, and what would be right."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from jobs.errors import StoreError

_SQLITE = (
    (("full",), "cannot be written: the disk is full; free some space"),
    (("readonly", "read-only", "permission"), "cannot be written: no permission; check its owner and mode"),
    (("unable to open",), "cannot be opened; its directory must exist and be writable"),
    (("locked",), "has been locked too long by another process; try again, and see what else uses it"),
    (("not a database", "malformed"), "is not a readable store; move it away or restore a backup"),
)
# By SQLSTATE where the server sent one, by words where the connection never came about.
_POSTGRES = (
    (
        ("28P01", "28000"),
        ("password authentication failed", "no password supplied", "no pg_hba.conf entry"),
        "does not let this user in; check user and password in CODISTILL_DATABASE, and the server's pg_hba.conf",
    ),
    (
        ("53300",),
        ("too many clients", "remaining connection slots", "too many connections"),
        "has no connection left; raise its max_connections, or end what holds them",
    ),
    (("3D000",), ("does not exist",), "has no such database, or the user has no right to it; create it with: createdb"),
    (
        ("25006",),
        ("read-only",),
        "is read-only (a standby, or default_transaction_read_only); name the primary in CODISTILL_DATABASE",
    ),
    (("42501",), ("permission denied",), "refuses this user; grant it CREATE and USAGE on the schema"),
    (("53100",), ("no space left", "disk full"), "cannot be written: its disk is full; free some space"),
    (("55P03", "57014"), ("timeout expired",), "did not answer in time; see what locks it (pg_stat_activity)"),
    (
        ("57P01", "57P02", "57P03", "08000", "08001", "08003", "08006"),
        ("refused", "could not translate", "resolve", "no such file", "closed", "terminat", "unreachable",
         "starting up", "shutting down", "lost", "no route"),
        "does not answer; start it, or name another in CODISTILL_DATABASE",
    ),
)  # fmt: skip


def explain(url: sa.URL, error: DBAPIError) -> StoreError:
    """What a driver's error means. The password is never in it."""
    text = " ".join(str(error.orig).split())
    if url.get_backend_name() == "sqlite":
        return StoreError(f"the store {url.database} {meaning_of_sqlite(text)}")
    state = getattr(error.orig, "sqlstate", None)
    return StoreError(f"the store {place_of(url)} {meaning_of_postgres(state, text)}")


def place_of(url: sa.URL) -> str:
    """Where a store is, without user and password."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    host = url.host or url.query.get("host") or "the local socket"
    return f"{url.database or 'postgres'} at {host}:{url.port or url.query.get('port') or 5432}"


def meaning_of_sqlite(text: str) -> str:
    for words, meaning in _SQLITE:
        if any(word in text.lower() for word in words):
            return meaning
    return f"failed: {text}"


def meaning_of_postgres(state: str | None, text: str) -> str:
    """By SQLSTATE (Appendix A of PostgreSQL's manual), or by the words of a connection that never was."""
    for states, words, meaning in _POSTGRES:
        if state in states if state is not None else any(word in text.lower() for word in words):
            return meaning
    return f"failed: {text[:500]}" + (f" [{state}]" if state else "")
