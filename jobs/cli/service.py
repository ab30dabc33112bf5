"""What verbs that talk to a service share: their options, the connection, and a job as text."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.cli.output import number, plain, say, service_url, table

if TYPE_CHECKING:
    from jobs.client import Client, RemoteJob

Url = Annotated[str | None, typer.Option("--url", help="Address of the service [env: CODISTILL_URL]", metavar="URL")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job")]


def connect(url: str | None) -> Client:
    from jobs.client import Client

    return Client(url or service_url(), token=os.environ.get("CODISTILL_TOKEN"))


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
        "",
        replica_table(status["replicas"]),
        "",
        table(
            ("SINCE", "STATE", "ATTEMPT", "REASON"),
            [(t["time"], t["state"], t["fence"], why(t)) for t in status["transitions"]],
        ),
    ]
    return "\n".join(lines)


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
