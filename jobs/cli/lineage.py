"""Verbs about a job that has ended: go on from it, and take away what it has left."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.exits import CommandError, Exit
from jobs.cli.output import emit, say
from jobs.cli.service import JobId, Url, connect
from jobs.cli.specs import Settings, changes_of

if TYPE_CHECKING:
    from jobs.client import RemoteJob


def resume(job: JobId, change: Settings = None, url: Url = None) -> int:
    """Go on with the same training, as a new job from the newest checkpoints of one that has ended; prints its id."""
    changes = changes_of(change)
    with connect(url) as client:
        return _tell(client.resume(job, changes))


def fork(job: JobId, change: Settings = None, url: Url = None) -> int:
    """Begin another training from the newest checkpoints of a job that has ended; prints the new job's id."""
    changes = changes_of(change)
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
