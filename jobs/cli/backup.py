"""`codistill backup` and `codistill restore`: copies of the store, not of the run directories."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.exits import CommandError, Exit
from jobs.cli.output import database_url, emit, home, say

File = Annotated[Path, typer.Argument(metavar="FILE", help="The copy")]
_SQLITE = "sqlite:///"


def backup(file: File) -> int:
    """Copy the store of the service to FILE, while it runs: jobs, their history, tokens, audit."""
    from jobs.backups import back_up

    count = back_up(_store_file(file, restore=False), file.absolute())
    emit(str(file))
    say(f"{count} jobs; the run directories are not in it: copy those after it. To go back: codistill restore {file}")
    return Exit.DONE


def restore(
    file: File,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")] = False,
) -> int:
    """Make the store what FILE has; what was there before is kept beside it. The service must not run."""
    from jobs.backups import jobs_in, put_back
    from jobs.one_service import NO_CLUSTER, only_one

    store = _store_file(file, restore=True)
    count = jobs_in(file)
    if not yes:
        if not sys.stdin.isatty():
            raise CommandError("not asked, as there is no terminal; --yes restores it", Exit.USAGE)
        if not typer.confirm(f"Replace {store} by these {count} jobs?", err=True):
            return Exit.DONE
    with only_one(home(), NO_CLUSTER):
        kept = put_back(file.absolute(), store)
    say(f"{store} has {count} jobs now" + ("" if kept is None else f"; what it was before is in {kept.path}"))
    if kept is not None and kept.as_it_was:
        say("it could not be copied, damaged as it may be: these are its files as they were")
    say("next: codistill serve; jobs that ran when the copy was made are looked for, and tried again")
    return Exit.DONE


def _store_file(file: Path, *, restore: bool) -> Path:
    """Where the store is. Raises `CommandError` with the right command for a store that is no file."""
    url = database_url()
    if url.startswith(_SQLITE):
        return Path(url.removeprefix(_SQLITE)).absolute()
    from jobs.backups import postgres_command

    command = postgres_command(url, file, restore=restore)
    raise CommandError(f"the store is on a PostgreSQL server, which has its own way; use: {command}", Exit.USAGE)
