"""`codistill watch`: a job live: replicas, steps, losses, and how stale their teachers are."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.cli.exits import exit_of
from jobs.cli.output import plain, say
from jobs.cli.service import JobId, Url, connect, describe, tell_end

if TYPE_CHECKING:
    from jobs.client import Client, RemoteJob

REFRESH_S = 0.5
LINE_INTERVAL_S = 2.0


def watch(
    job: JobId,
    url: Url = None,
    plain_lines: Annotated[bool, typer.Option("--plain", help="Lines, even on a terminal")] = False,
) -> int:
    """Follow a job live until it ends. Ctrl-C only stops the watching."""
    with connect(url) as client:
        return follow(client, job, plain_lines=plain_lines)


def follow(client: Client, job_id: str, *, plain_lines: bool = False) -> int:
    """Show a job until it ends; the exit code of how it ended."""
    try:
        if sys.stdout.isatty() and not plain_lines:
            ended = _follow_on_screen(client, job_id)
        else:
            ended = client.wait(job_id, poll_s=REFRESH_S, seen=LineReporter().report)
    except KeyboardInterrupt:
        say(f"\nno longer watching; the job goes on. To end it: codistill cancel {job_id}")
        raise
    tell_end(ended)
    return exit_of(ended.state)


def _follow_on_screen(client: Client, job_id: str) -> RemoteJob:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), auto_refresh=False) as live:
        return client.wait(job_id, poll_s=REFRESH_S, seen=lambda job: live.update(Text(describe(job)), refresh=True))


class LineReporter:
    """Turns what is seen of a job into lines: one per change of state, and one per replica every other second."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._state: str | None = None
        self._next_at = 0.0

    def report(self, job: RemoteJob) -> None:
        for line in self.lines(job, time.monotonic()):
            print(line, flush=True)

    def lines(self, job: RemoteJob, now_s: float) -> list[str]:
        """What to print after this answer."""
        found: list[str] = []
        state = f"{job.state}" + (f" ({job.reason.message})" if job.reason else "")
        if state != self._state:
            self._state = state
            found.append(f"{self._prefix}{job.id}: {state}")
        if now_s >= self._next_at:
            beating = [r for r in job.value["status"]["replicas"] if r.get("step") is not None]
            found += [f"{self._prefix}{job.id}: {replica_line(r)}" for r in beating if not job.ended]
            self._next_at = now_s + LINE_INTERVAL_S
        return found


def replica_line(replica: dict[str, Any]) -> str:
    """How far a replica is, as a local run says it, too."""
    from codistill.progress import progress_line

    return plain(progress_line(replica, now=replica["time"] + replica["seconds_since_beat"]))
