"""Tokens in the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from jobs.audit import note
from jobs.callers import Caller, Presented, Scope, Token, mint
from jobs.database import Database
from jobs.tables import TOKENS


class Accounts:
    """Who may come in. Every method is one transaction and raises `StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, owner: str, scope: Scope, *, lifetime_s: float | None, by: Caller) -> tuple[Token, str]:
        """A new token, and the text to be shown once: it is kept nowhere. Those that `owner` has stay valid, so that
        one can take the place of another without a pause."""
        now = self._database.clock()
        token_id, text, digest = mint()
        row: dict[str, Any] = {
            "id": token_id,
            "owner": owner,
            "scope": scope.value,
            "digest": digest,
            "created_at": now,
            "expires_at": None if lifetime_s is None else now + lifetime_s,
        }
        with self._database.transaction(write=True) as connection:
            connection.execute(sa.insert(TOKENS).values(**row))
            note(connection, by, "token.create", token_id, now)
        return Token(token_id, owner, scope, digest, now, row["expires_at"], None), text

    def adopt(self, tokens: Sequence[Token], *, by: Caller) -> list[Token]:
        """Keep those of `tokens` that are not known by their id, and return them. A known one stays as it is, also
        when it was revoked."""
        now = self._database.clock()
        with self._database.one_at_a_time() as connection:
            known = set(connection.scalars(sa.select(TOKENS.c.id).where(TOKENS.c.id.in_([one.id for one in tokens]))))
            new = [one for one in tokens if one.id not in known]
            for one in new:
                connection.execute(sa.insert(TOKENS).values(**{**asdict(one), "scope": one.scope.value}))
                note(connection, by, "token.adopt", one.id, now)
        return new

    def revoke(self, token_id: str, *, by: Caller) -> bool:
        """End a token now; whether there was one that had not ended."""
        now = self._database.clock()
        end = sa.update(TOKENS).where(TOKENS.c.id == token_id, TOKENS.c.revoked_at.is_(None)).values(revoked_at=now)
        with self._database.transaction(write=True) as connection:
            found = connection.execute(end).rowcount == 1
            if found:
                note(connection, by, "token.revoke", token_id, now)
        return found

    def list(self) -> list[Token]:
        """All that there ever were, oldest first."""
        with self._database.transaction() as connection:
            rows = connection.execute(sa.select(TOKENS).order_by(TOKENS.c.created_at, TOKENS.c.id))
            return [_token(row) for row in rows]

    def find(self, sent: Presented) -> Token | None:
        """The token that was presented, if it opens anything now."""
        with self._database.transaction() as connection:
            row = connection.execute(sa.select(TOKENS).where(TOKENS.c.id == sent.id)).one_or_none()
        token = None if row is None else _token(row)
        return token if sent.opens(token, self._database.clock()) else None

    def any_active(self) -> bool:
        """Whether anybody could come in."""
        now = self._database.clock()
        return any(token.is_active(now) for token in self.list())


def _token(row: sa.Row[Any]) -> Token:
    return Token(row.id, row.owner, Scope(row.scope), row.digest, row.created_at, row.expires_at, row.revoked_at)
