"""`codistill down`."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.exits import CommandError, Exit
from jobs.cli.output import home, say

if TYPE_CHECKING:
    from jobs.one_service import Holder

SERVE_ENDS_WITHIN_S = 5.0


def down(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")] = False,
) -> int:
    """End the Ray head that `codistill serve` started, with its service and every running job.

    A service on another cluster (serve --on) goes on.
    """
    from jobs import head as heads
    from jobs.one_service import NO_CLUSTER, holder

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
    serving = holder(home())
    count = heads.end(home(), known)
    if serving is not None and serving.serves_from(known):
        count += _end_command(serving)
    elif serving is not None and serving.cluster != NO_CLUSTER:
        say(f"the service on the cluster at {serving.cluster} is left alone; Ctrl-C of its codistill serve ends it")
    say(f"ended {count} processes")
    return Exit.DONE


def _end_command(serving: Holder) -> int:
    """End the `codistill serve` that served from the head; it ends by itself when it misses the head."""
    from jobs.one_service import holder

    give_up = time.monotonic() + SERVE_ENDS_WITHIN_S
    while holder(home()) == serving:
        if time.monotonic() > give_up:
            os.kill(serving.pid, signal.SIGKILL)
            break
        time.sleep(0.1)
    return 1
