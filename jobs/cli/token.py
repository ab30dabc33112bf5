"""`codistill token`: who may come in. Works on the store of a service, whether or not that runs."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codistill.run_dir import ID_PATTERN
from jobs.callers import LOCAL, Scope, Token
from jobs.cli.exits import CommandError, Exit
from jobs.cli.output import Format, database_url, emit, emit_data, say, table

if TYPE_CHECKING:
    from jobs.accounts import Accounts

token = typer.Typer(help="Tokens of a service: create, list, revoke.", no_args_is_help=True)

DAY_S = 86_400.0
Output = Annotated[Format, typer.Option("-o", "--output", help="How it is printed")]


@token.command("create")
def create(
    owner: Annotated[str, typer.Argument(metavar="OWNER", help="Whose jobs it opens; a person or a team")],
    scope: Annotated[Scope, typer.Option(help="read, write (one's own jobs), admin (everybody's)")] = Scope.WRITE,
    days: Annotated[float | None, typer.Option(min=0.001, help="It ends after so many [default: never]")] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            help="Keep its digest in this file, for a service to read (CODISTILL_TOKENS_FILE), not in a store",
            metavar="FILE",
            dir_okay=False,
        ),
    ] = None,
) -> int:
    """Make a token and print it: this once, since only a digest is kept."""
    if not ID_PATTERN.fullmatch(owner):
        raise CommandError(
            f"{owner!r}: an owner has lower-case letters, digits and hyphens, 63 at most; use e.g. team-a", Exit.USAGE
        )
    lifetime_s = None if days is None else days * DAY_S
    if to is not None:
        made, text = _create_in(to, owner, scope, lifetime_s)
    else:
        with _accounts() as accounts:
            made, text = accounts.create(owner, scope, lifetime_s=lifetime_s, by=LOCAL)
    emit(text)
    say(f"token {made.id} of {owner}, scope {scope}; it is not shown again. Use: export CODISTILL_TOKEN=...")
    return Exit.DONE


def _create_in(path: Path, owner: str, scope: Scope, lifetime_s: float | None) -> tuple[Token, str]:
    from jobs.token_file import TokenFileError, add_token

    try:
        return add_token(path, owner, scope, lifetime_s=lifetime_s)
    except TokenFileError as error:
        raise CommandError(str(error), Exit.UNAVAILABLE) from None


@token.command("list")
def list_tokens(output: Output = Format.TABLE) -> int:
    """All tokens there ever were; never the tokens themselves."""
    with _accounts() as accounts:
        found = accounts.list()
    if output is not Format.TABLE:
        emit_data([_fact(one) for one in found], output)
    elif found:
        rows = [
            (f["id"], f["owner"], f["scope"], f["state"], f["created_at"], f["expires_at"]) for f in map(_fact, found)
        ]
        emit(table(("TOKEN", "OWNER", "SCOPE", "STATE", "CREATED", "EXPIRES"), rows))
    else:
        say("no tokens; codistill token create OWNER makes one")
    return Exit.DONE


@token.command("revoke")
def revoke(token_id: Annotated[str, typer.Argument(metavar="TOKEN", help="Its id, as `token list` shows it")]) -> int:
    """End a token now."""
    with _accounts() as accounts:
        if not accounts.revoke(token_id, by=LOCAL):
            raise CommandError(f"there is no token {token_id!r} that has not ended; codistill token list", Exit.USAGE)
    say(f"token {token_id} opens nothing any more")
    return Exit.DONE


@contextmanager
def _accounts() -> Generator[Accounts]:
    from jobs.store import Store

    store = Store.open(database_url())
    try:
        yield store.accounts
    finally:
        store.close()


def _fact(one: Token) -> dict[str, str | None]:
    from jobs.views import rfc3339

    now = time.time()
    state = "active" if one.is_active(now) else "revoked" if one.revoked_at is not None else "expired"
    return {
        "id": one.id,
        "owner": one.owner,
        "scope": one.scope.value,
        "state": state,
        "created_at": rfc3339(one.created_at),
        "expires_at": rfc3339(one.expires_at),
    }
