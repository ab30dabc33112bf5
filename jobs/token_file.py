"""Tokens that a service is given in a file, such as a mounted Secret: a JSON object a line, with all that a store
keeps of a token and nothing that opens anything.

A service reads it when it starts, so that one which has never run can be entered, though nobody could reach its store
to make a token there. What the store knows already stays as it is: a token that was revoked does not come back.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from codistill.run_dir import ID_PATTERN
from jobs.callers import ID_FORM, Scope, Token, mint

MAX_BYTES = 1 << 20
"""As much as a Secret may hold."""


class TokenFileError(ValueError):
    """A file of tokens cannot be used; the message says where and why."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str = Field(pattern=ID_FORM)
    owner: str = Field(pattern=ID_PATTERN.pattern)
    scope: Scope
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    created_at: AwareDatetime
    expires_at: AwareDatetime | None


def add_token(path: Path, owner: str, scope: Scope, *, lifetime_s: float | None) -> tuple[Token, str]:
    """A new token whose digest is appended to the file, and the text to be shown once. A file that is made is for its
    user alone. Raises `TokenFileError`."""
    token_id, text, digest = mint()
    now = time.time()
    token = Token(token_id, owner, scope, digest, now, None if lifetime_s is None else now + lifetime_s, None)
    line = _Line(
        id=token_id,
        owner=owner,
        scope=scope,
        digest=digest,
        created_at=_moment(now),
        expires_at=None if token.expires_at is None else _moment(token.expires_at),
    )
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as file:
            file.write(line.model_dump_json() + "\n")
    except OSError as error:
        raise TokenFileError(f"cannot write {path}: {error.strerror}") from error
    return token, text


def read_tokens(path: Path) -> list[Token]:
    """Every token of the file. Raises `TokenFileError`."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TokenFileError(f"{path} has more than {MAX_BYTES:,} bytes; is it a file of tokens?")
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TokenFileError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise TokenFileError(f"{path} is not text; codistill token create OWNER --to FILE writes one") from None
    found = [_token(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if len({token.id for token in found}) < len(found):
        raise TokenFileError(f"{path} has a token twice; each needs an id of its own")
    return found


def _token(path: Path, number: int, line: str) -> Token:
    try:
        found = _Line.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]  # the input might be a token itself
        where = ".".join(map(str, first["loc"])) or "the line"
        raise TokenFileError(
            f"{path}, line {number}: {where}: {first['msg']}; codistill token create OWNER --to FILE writes such a line"
        ) from None
    expires_at = None if found.expires_at is None else found.expires_at.timestamp()
    return Token(found.id, found.owner, found.scope, found.digest, found.created_at.timestamp(), expires_at, None)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
