"""`codistill down`."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Annotated

import typer

from jobs.cli.exits import CommandError, Exit
from jobs.cli.output import home, say

SERVE_ENDS_WITHIN_S = 5.0


def down(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")] = False,
) -> int:
    """End the Ray head that `codistill serve` started, with its service and every running job."""
    from jobs import head as heads

    known = heads.remembered(home())
    if known is None:
        say("nothing to end: no Ray head was started from here")
        return Exit.DONE
    say(
        f"this ends the Ray head at {known.address}, the service at port {known.http_port}, and every job running there"
    )
    if not yes:
        if not sys.stdin.isatty():
            raise CommandError("not asked, as there is no terminal; --yes ends it", Exit.USAGE)
        if not typer.confirm("End it?", err=True):
            return Exit.DONE
    serving = heads.serving_pid(home())
    count = heads.end(home(), known)
    if serving is not None:
        count += _end_command(serving)
    say(f"ended {count} processes")
    return Exit.DONE


def _end_command(pid: int) -> int:
    """End the `codistill serve` that served from the head; it ends by itself when it misses the head."""
    from jobs import head as heads

    give_up = time.monotonic() + SERVE_ENDS_WITHIN_S
    while heads.serving_pid(home()) == pid:
        if time.monotonic() > give_up:
            os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.1)
    return 1
