"""Verbs that talk to a service: submit, list, show, logs, wait, cancel."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from jobs.cli.exits import CommandError, Exit, exit_of
from jobs.cli.output import Format, emit, emit_data, plain, say, table
from jobs.cli.price import price_lines
from jobs.cli.service import JobId, Url, connect, describe, labels_of, since_when, tell_end, why
from jobs.cli.specs import Settings, Specs, spec_of
from jobs.status import State

Output = Annotated[Format, typer.Option("-o", "--output", help="How to print")]


def submit(
    spec: Specs,
    change: Settings = None,
    url: Url = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job to its end")] = False,
) -> int:
    """Give a job to the service; prints its id."""
    checked = spec_of(spec, change)
    with connect(url) as client:
        job = client.submit(checked)
        emit(job.id)
        for line in price_lines(job.value["estimate"]):
            say(line)
        say(f"next: codistill watch {job.id} | codistill logs {job.id} --follow | codistill cancel {job.id}")
        if watch:
            from jobs.cli.watch import follow

            return follow(client, job.id)
    return Exit.DONE


def list_jobs(
    state: Annotated[list[State] | None, typer.Option(help="Only jobs in this state; once for each")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Only jobs with this label; all of them", metavar="K=V")
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Only jobs of this owner")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs of this name")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only jobs submitted since: 90m, 36h, 7d, or a date", metavar="WHEN")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most so many")] = 50,
    output: Output = Format.TABLE,
    url: Url = None,
) -> int:
    """Jobs of the service, newest first."""
    from jobs.client import Wanted

    created_from = None if since is None else since_when(since, datetime.now(UTC))
    wanted = Wanted(state or (), labels_of(label or ()), owner, name, created_from=created_from)
    with connect(url) as client:
        page = client.list(limit=limit, wanted=wanted)
    if output is not Format.TABLE:
        emit_data(page, output)
        return Exit.DONE
    rows = [
        (item["id"], item["status"]["state"], item["status"]["attempts"], item["created_at"], why(item["status"]))
        for item in page["items"]
    ]
    emit(table(("JOB", "STATE", "ATTEMPTS", "CREATED", "REASON"), rows))
    if page["next_cursor"] is not None:
        say(f"there are more; --limit {min(500, 2 * limit)} shows them")
    return Exit.DONE


def show(job: JobId, output: Output = Format.TABLE, url: Url = None) -> int:
    """Everything the service knows about a job."""
    with connect(url) as client:
        found = client.show(job)
    if output is Format.TABLE:
        emit(describe(found))
    else:
        emit_data(found.value, output)
    return Exit.DONE


def logs(
    job: JobId,
    replica: Annotated[str, typer.Option(help="replica-0, replica-1, ... or driver")] = "replica-0",
    tail: Annotated[int | None, typer.Option(min=0, help="Only the last lines")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends")] = False,
    url: Url = None,
) -> int:
    """What a replica of a job, or its driver, has written."""
    with connect(url) as client:
        if follow:
            try:
                client.follow_logs(job, _write, replica=replica, tail=tail)
            except KeyboardInterrupt:
                say(f"\nno longer following; the job goes on. To end it: codistill cancel {job}")
                raise
            return Exit.DONE
        text, _ = client.logs(job, replica=replica, tail=tail)
        _write(text)
        if not text:
            say(f"{replica} has written nothing yet; codistill show {job} says how far the job is")
    return Exit.DONE


def _write(text: str) -> None:
    for line in text.splitlines(keepends=True):
        sys.stdout.write(plain(line.rstrip("\n")) + ("\n" if line.endswith("\n") else ""))
    sys.stdout.flush()


def wait(
    job: JobId,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait at most", metavar="SECONDS")] = None,
    url: Url = None,
) -> int:
    """Wait for a job to end; the exit code says how (0 succeeded, 100 failed, 101 not finished, 103 cancelled)."""
    with connect(url) as client:
        try:
            ended = client.wait(job, timeout_s=timeout)
        except TimeoutError as error:
            raise CommandError(f"{error}; wait again, or see: codistill show {job}", Exit.JOB_NOT_FINISHED) from None
    tell_end(ended)
    return exit_of(ended.state)


def cancel(
    job: JobId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")] = False,
    url: Url = None,
) -> int:
    """End a job; its replicas write a last checkpoint first."""
    if not yes and sys.stdin.isatty() and not typer.confirm(f"End {job}?", err=True):
        return Exit.DONE
    with connect(url) as client:
        found = client.cancel(job)
    say(
        f"{found.id} is {found.state}" + ("" if found.ended else f"; codistill wait {found.id} tells when it has ended")
    )
    return Exit.DONE
