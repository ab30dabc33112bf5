"""Who asks, and what they may do: owners, scopes, and the tokens that prove both."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from enum import StrEnum

ID_FORM = r"^[a-z2-7]{12}$"
"""Of a token's id."""
_TOKEN = re.compile(r"codistill_([a-z2-7]{12})_([A-Za-z0-9_-]{43})")
_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"


class Scope(StrEnum):
    """What a token allows; each includes those before it."""

    READ = "read"
    """See what one's owner has."""
    WRITE = "write"
    """Submit, cancel, resume, fork, delete what one's owner has."""
    ADMIN = "admin"
    """The same for all owners."""

    def includes(self, needed: Scope) -> bool:
        order = list(Scope)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True)
class Caller:
    """Who sent a request."""

    owner: str
    scope: Scope
    token_id: str | None = None
    request_id: str = ""

    @property
    def sees(self) -> str | None:
        """Whose jobs they see; None: everybody's."""
        return None if self.scope is Scope.ADMIN else self.owner


LOCAL = Caller("local", Scope.ADMIN)
"""Whoever reaches a service on loopback that has no tokens."""


@dataclass(frozen=True)
class Token:
    """What the store keeps of a token: everything but the secret. Times are seconds since the epoch."""

    id: str
    owner: str
    scope: Scope
    digest: str = field(repr=False)
    created_at: float
    expires_at: float | None
    revoked_at: float | None

    def is_active(self, now: float) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True)
class Presented:
    """A token as it came with a request."""

    id: str
    digest: str = field(repr=False)

    def opens(self, token: Token | None, now: float) -> bool:
        """Whether this is `token`. Takes as long for one that does not exist."""
        same = hmac.compare_digest(self.digest, token.digest if token else "0" * 64)
        return token is not None and same and token.is_active(now)


def mint() -> tuple[str, str, str]:
    """A new token's id, the token itself (256 random bits, to be shown once), and what is kept of it."""
    token_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(12))
    secret = secrets.token_urlsafe(32)
    return token_id, f"codistill_{token_id}_{secret}", _digest(secret)


def presented(text: str) -> Presented | None:
    """A token that somebody sent; None for what has not the form of one."""
    match = _TOKEN.fullmatch(text)
    return None if match is None else Presented(match[1], _digest(match[2]))


def _digest(secret: str) -> str:
    # The secret is random and long: a slow hash would protect nothing more.
    return hashlib.sha256(secret.encode()).hexdigest()
