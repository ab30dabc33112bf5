"""What verbs that talk to a service share: their options, the connection, and a job as text."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.cli.exits import CommandError, Exit
from jobs.cli.output import number, plain, say, service_url, table
from jobs.cli.price import price_lines

if TYPE_CHECKING:
    from jobs.client import Client, RemoteJob

Url = Annotated[str | None, typer.Option("--url", help="Address of the service [env: CODISTILL_URL]", metavar="URL")]
_LONG_AGO_MINUTES = 365 * 24 * 60 * 20
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job")]


def connect(url: str | None) -> Client:
    from jobs.client import Client

    return Client(url or service_url(), token=os.environ.get("CODISTILL_TOKEN"))


def labels_of(texts: Sequence[str]) -> dict[str, str]:
    """What `--label K=V`, once for each, asks for. Raises `CommandError`."""
    pairs = [text.partition("=") for text in texts]
    for key, equals, value in pairs:
        if not (key and equals):
            raise CommandError(f"--label {key}{equals}{value}: write KEY=VALUE, such as --label team=a", Exit.USAGE)
    return {key: value for key, _, value in pairs}


def since_when(text: str, now: datetime) -> str:
    """The time, as RFC 3339 has it, that `90m`, `36h`, `7d` ago, or a date, means. Raises `CommandError`."""
    ago = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if ago is not None:
        minutes = int(ago[1]) * {"m": 1, "h": 60, "d": 24 * 60}[ago[2]]
        return (now - timedelta(minutes=min(minutes, _LONG_AGO_MINUTES))).isoformat()
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        message = f"--since {text}: write 90m, 36h, 7d, or a date such as 2026-11-01 (in UTC)"
        raise CommandError(message, Exit.USAGE) from None
    return (given if given.tzinfo else given.replace(tzinfo=UTC)).isoformat()


def why(status: dict[str, Any]) -> str:
    return status["reason"]["message"] if status["reason"] else ""


def describe(job: RemoteJob) -> str:
    """A job for a person to read."""
    status = job.value["status"]
    progress = status["progress"]
    lines = [
        f"{job.id}  {job.state}  attempt {status['fence']}  {progress['completed']}/{progress['total']} steps",
        *([f"because: {plain(job.reason.message)} [{job.reason.code}]"] if job.reason else []),
        *(["degraded: some replicas failed"] if status["degraded"] else []),
        *price_lines(job.value["estimate"], (job.value["result"] or {}).get("took")),
        *deadlines(job.value),
        "",
        replica_table(status["replicas"]),
        "",
        table(
            ("SINCE", "STATE", "ATTEMPT", "REASON"),
            [(t["time"], t["state"], t["fence"], why(t)) for t in status["transitions"]],
        ),
    ]
    return "\n".join(lines)


def deadlines(value: Mapping[str, Any]) -> list[str]:
    """By when a job has to begin and to end, and what it has reserved until now, where there is anything to say."""
    limits = value["deadlines"]
    by = [f"{what} by {limits[key]}" for what, key in (("first step", "start_by"), ("end", "end_by")) if limits[key]]
    used = value["usage"]
    reserved = f"reserved: {used['cpu_hours']:.2f} CPU-hours, {used['gpu_hours']:.2f} GPU-hours"
    return ([f"deadlines: {', '.join(by)}"] if by else []) + ([reserved] if value["started_at"] else [])


def replica_table(replicas: list[dict[str, Any]]) -> str:
    """One line per replica: how far, how well, who teaches it and how stale."""
    rows = [
        (
            r["replica"],
            r.get("state") or "not started",
            "-" if r.get("step") is None else f"{r['step']}/{r.get('steps', '?')}",
            number(r.get("loss")),
            teacher_ages(r.get("teachers", [])),
            "-" if r["seconds_since_beat"] is None else f"{r['seconds_since_beat']:.1f} s",
        )
        for r in replicas
    ]
    return table(("REPLICA", "STATE", "STEP", "LOSS", "TEACHERS (lag/offset)", "LAST HEARD"), rows)


def teacher_ages(teachers: list[dict[str, Any]]) -> str:
    """E.g. `replica-1 v600 12/50`: version, the peer's steps since, our own steps since; `!` when in quarantine."""
    ages = [
        f"{t['teacher']} v{t['version']} {'?' if t['lag_steps'] is None else t['lag_steps']}/{t['offset_steps']}"
        + ("!" if t.get("quarantined") else "")
        for t in teachers
    ]
    return ", ".join(ages) or "-"


def tell_end(job: RemoteJob) -> None:
    reason = f": {plain(job.reason.message)}" if job.reason else ""
    say(f"{job.id} {job.state}{reason}")
