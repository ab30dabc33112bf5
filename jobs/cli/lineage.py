"""Verbs about a job that has ended: go on from it, and take away what it has left."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codistill.lineage import merged
from jobs.cli.exits import CommandError, Exit
from jobs.cli.output import emit, say
from jobs.cli.service import JobId, Url, connect

if TYPE_CHECKING:
    from jobs.client import RemoteJob

Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=JSON", help="E.g. training.steps=2000 or name=longer; as often as needed"),
]


def resume(job: JobId, change: Changes = None, url: Url = None) -> int:
    """Go on with the same training, as a new job from the newest checkpoints of one that has ended; prints its id."""
    changes = changes_of(change or [])
    with connect(url) as client:
        return _tell(client.resume(job, changes))


def fork(job: JobId, change: Changes = None, url: Url = None) -> int:
    """Begin another training from the newest checkpoints of a job that has ended; prints the new job's id."""
    changes = changes_of(change or [])
    with connect(url) as client:
        return _tell(client.fork(job, changes))


def export(
    job: JobId,
    directory: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Where to [default: ./JOB]")] = None,
    url: Url = None,
) -> int:
    """Download what a job has left: models, predictions, results, records. Prints the paths."""
    target = Path(job) if directory is None else directory
    with connect(url) as client:
        found = client.artifacts(job)
        if not found:
            say(f"{job} has left nothing yet; codistill show {job} says how far it is")
            return Exit.DONE
        for artifact in found:
            path = target / _inside(artifact["name"])
            try:
                client.download(job, artifact, path)
            except OSError as error:
                raise CommandError(
                    f"cannot write {path}: {error.strerror or error}; name another directory", Exit.USAGE
                ) from None
            emit(str(path))
    return Exit.DONE


def changes_of(settings: list[str]) -> dict[str, Any]:
    """From `training.steps=2000` and the like to a part of a spec. What is no JSON is taken as text."""
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        parts = key.split(".")
        if not equals or not all(parts):
            raise CommandError(f"--set {setting!r}: write KEY=VALUE, e.g. --set training.steps=2000", Exit.USAGE)
        try:
            value: Any = json.loads(text)
        except ValueError:
            value = text
        for part in reversed(parts):
            value = {part: value}
        changes = merged(changes, value)
    return changes


def _tell(job: RemoteJob) -> int:
    emit(job.id)
    say(f"next: codistill watch {job.id} | codistill logs {job.id} --follow | codistill cancel {job.id}")
    return Exit.DONE


def _inside(name: str) -> PurePosixPath:
    """A name of the service's as a path below the directory, wherever it would lead."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise CommandError(
            f"the service names a file {name!r}, which would lie elsewhere; is it ours? Use --url", Exit.UNAVAILABLE
        )
    return path
