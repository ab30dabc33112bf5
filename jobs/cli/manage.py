"""Verbs that look after the queue and what is left of jobs: queue, priority, usage, delete, prune."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from codistill.words import size
from jobs.cli.exits import CommandError, Exit
from jobs.cli.output import Format, emit, emit_data, say, table
from jobs.cli.retry import Retry
from jobs.cli.service import JobId, Url, connect, since_when, why
from jobs.status import State

if TYPE_CHECKING:
    from jobs.client import Client

Output = Annotated[Format, typer.Option("-o", "--output", help="How to print")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")]


def queue(output: Output = Format.TABLE, url: Url = None) -> int:
    """Who waits, in turn, and why; what is reserved and what there is."""
    from jobs.client import Wanted

    with connect(url) as client:
        found = client.queue()
        reasons = {item["id"]: why(item["status"]) for item in client.every(Wanted(states=[State.QUEUED]))}
    waiting = [{**item, "reason": reasons.get(item["id"])} for item in found["items"]]
    if output is not Format.TABLE:
        emit_data({**found, "items": waiting}, output)
        return Exit.DONE
    if waiting:
        rows = [(item["position"], item["id"], item["priority"], item["reason"]) for item in waiting]
        emit(table(("PLACE", "JOB", "PRIORITY", "WHY"), rows))
    used, total = found["reserved"], found["total"]
    say(
        f"{found['waiting']} waiting; reserved: {used['cpus']:g} of {total['cpus']:g} CPUs,"
        f" {used['gpus']:g} of {total['gpus']:g} GPUs"
    )
    return Exit.DONE


def priority(
    job: JobId,
    value: Annotated[int, typer.Argument(metavar="N", min=-100, max=100, help="-100 to 100, the higher first")],
    url: Url = None,
) -> int:
    """Put a job that waits before or behind others. A negative N goes behind two hyphens: priority JOB -- -5."""
    with connect(url) as client:
        found = client.set_priority(job, value)
    place = found.value["status"]["queue_position"]
    say(
        f"{found.id} has priority {value}"
        + ("" if place is None else f", and place {place}; codistill queue shows all")
    )
    return Exit.DONE


def usage(
    since: Annotated[
        str | None, typer.Option(help="Of jobs submitted since: 90m, 36h, 7d, or a date", metavar="WHEN")
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Of this owner alone")] = None,
    output: Output = Format.TABLE,
    url: Url = None,
) -> int:
    """CPU-hours and GPU-hours that jobs have reserved, by owner, deleted jobs too; and what is left of them."""
    created_from = None if since is None else since_when(since, datetime.now(UTC))
    with connect(url) as client:
        found = client.usage(owner=owner, created_from=created_from)
    if output is not Format.TABLE:
        emit_data(found, output)
    elif found["items"]:
        rows = [
            (i["owner"], i["jobs"], f"{i['cpu_hours']:.2f}", f"{i['gpu_hours']:.2f}", size(i["stored_bytes"]))
            for i in found["items"]
        ]
        emit(table(("OWNER", "JOBS", "CPU-HOURS", "GPU-HOURS", "STORED"), rows))
    else:
        say("no job has begun; codistill queue shows who waits")
    return Exit.DONE


def delete(job: JobId, yes: Yes = False, url: Url = None) -> int:
    """Delete a job that has ended, with its checkpoints, models and logs."""
    with connect(url) as client:
        if not _agreed(f"Delete {job} and everything that it left?", yes=yes):
            return Exit.DONE
        client.delete(job)
    say(f"{job} is deleted")
    return Exit.DONE


def prune(
    days: Annotated[float, typer.Option(min=0, help="What ended at least so many days ago")] = 30.0,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Keep jobs with this label, or with this value of it; once for each", metavar="K[=V]"),
    ] = None,
    delete_them: Annotated[bool, typer.Option("--delete", help="Delete them; without it they are only shown")] = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    url: Url = None,
) -> int:
    """Show the jobs that ended long ago, and with --delete, delete them with their run directories.

    Jobs with the label `keep` stay, and those that another one goes on from.
    """
    from jobs.retention import DAY_S, Past, prunable

    with connect(url) as client:
        items = client.every()
        kept = dict(map(_label, keep or ()))
        ids = prunable(list(map(Past.of_item, items)), now=time.time(), older_than_s=days * DAY_S, keep=kept)
        found = {item["id"]: item for item in items}
        if output is not Format.TABLE:
            emit_data([found[job_id] for job_id in ids], output)
        elif ids:
            rows = [(job_id, found[job_id]["status"]["state"], found[job_id]["ended_at"]) for job_id in ids]
            emit(table(("JOB", "STATE", "ENDED"), rows))
        say(f"{len(ids)} of {len(items)} jobs ended at least {days:g} days ago and are not kept")
        if not delete_them:
            say("nothing is deleted; --delete does")
        elif ids and _agreed(f"Delete these {len(ids)} jobs and everything that they left?", yes=yes):
            say(f"{_delete_all(client, ids)} of {len(ids)} deleted")
    return Exit.DONE


def _delete_all(client: Client, ids: Sequence[str]) -> int:
    """How many could be: meanwhile another may have deleted some, or gone on from one. Waits where it is asked to."""
    from jobs.client import ServiceRefused

    count, retry = 0, Retry()
    for job_id in ids:
        try:
            retry(partial(client.delete, job_id))
            count += 1
        except ServiceRefused as error:
            if error.status not in (404, 409):
                raise
    return count


def _label(text: str) -> tuple[str, str | None]:
    key, equals, value = text.partition("=")
    if not key:
        raise CommandError(f"--keep {text}: write KEY or KEY=VALUE, such as --keep team=a", Exit.USAGE)
    return key, value if equals else None


def _agreed(question: str, *, yes: bool) -> bool:
    if yes:
        return True
    if not sys.stdin.isatty():
        raise CommandError("not asked, as there is no terminal; --yes does it", Exit.USAGE)
    return typer.confirm(question, err=True)
