"""Verbs that need no service: init, validate, run, replay, schema."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import IO, Annotated

import typer

from codistill.baselines import Baseline, baseline_of
from codistill.run_dir import RunDir, StorageError, checked_id
from codistill.spec import JobSpec
from jobs.cli.attempt import exit_of_attempt
from jobs.cli.exits import CommandError, Exit
from jobs.cli.output import emit, emit_json, home, say
from jobs.cli.specs import Settings, Specs, spec_of

Storage = Annotated[
    Path | None, typer.Option(help="Where run directories are [default: runs in CODISTILL_HOME]", metavar="DIR")
]
Place = Annotated[
    str | None,
    typer.Option(
        "--on", help="auto: on a Ray cluster of this machine; http://host:8265: as a Ray Job there", metavar="RAY"
    ),
]
Instead = Annotated[
    Baseline | None,
    typer.Option(
        help="Instead of the spec's method, on the same data: ddp (one model, gradients averaged in every step),"
        " local_sgd or diloco (one model, weights averaged at every exchange)"
    ),
]


def init(
    path: Annotated[Path, typer.Argument(help="File to write")] = Path("codistill.toml"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file")] = False,
) -> int:
    """Write a commented example spec to start from."""
    from jobs.examples import example_text

    if path.suffix != ".toml":
        raise CommandError(f"{path}: the example is TOML; name a file that ends in .toml", Exit.USAGE)
    try:
        with path.open("w" if force else "x") as file:
            file.write(example_text("digits-pair"))
    except FileExistsError:
        raise CommandError(f"{path} exists already; choose another name, or --force", Exit.USAGE) from None
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}; name another file", Exit.USAGE) from None
    emit(str(path))
    say(f"next: codistill validate {path} | codistill run {path}")
    return Exit.DONE


def validate(
    spec: Specs,
    change: Settings = None,
    facts: Annotated[
        bool, typer.Option("--facts", help="Print instead what it trains, sends and takes: parameters, bytes, memory")
    ] = False,
    baseline: Instead = None,
) -> int:
    """Check a spec and print it with every default filled in."""
    checked = _load(spec, change, baseline)
    if facts:
        with _as_file(checked) as file:
            return run_module("codistill.describe", str(file))
    emit_json(checked.model_dump(mode="json"))
    files = " + ".join(map(str, spec))
    say(f"{files} is valid: {checked.replicas.count} x {checked.total_steps} steps, method {checked.method.kind}")
    return Exit.DONE


def schema() -> int:
    """Print the JSON Schema of a spec."""
    from codistill.spec import JobSpec

    emit_json(JobSpec.model_json_schema())
    return Exit.DONE


def run(
    spec: Specs,
    change: Settings = None,
    storage: Storage = None,
    name: Annotated[str | None, typer.Option(help="Id of the job [default: the spec's name and a random end]")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the spec's seed, for repetitions", min=0)] = None,
    on: Place = None,
    baseline: Instead = None,
) -> int:
    """Train here and now, without a service."""
    from jobs.job import new_job_id

    checked = _load(spec, change, baseline)
    if seed is not None:
        checked = checked.model_copy(update={"seed": seed})
    try:
        job_id = checked_id(name) if name else new_job_id(checked.name)
    except ValueError as error:
        raise CommandError(f"--name: {error}", Exit.USAGE) from None
    check_place(on, [checked], verb="run")
    return train_at(on, checked, RunDir(storage_or_default(storage), job_id))


def check_place(on: str | None, specs: Iterable[JobSpec], *, verb: str) -> None:
    """Raise `CommandError` unless jobs of `specs` can be trained where `--on` says: here, for None."""
    if on is None or on == "auto":
        for spec in specs:
            refuse_missing_data(spec)
    if on is None:
        return
    require_cluster(f"{verb} --on {on}")
    if on != "auto" and not _is_address(on):
        message = f"--on {on}: use auto, or the address of a Ray dashboard such as http://host:8265"
        raise CommandError(message, Exit.USAGE)


def train_at(on: str | None, spec: JobSpec, run: RunDir, *, stdout: IO[str] | None = None) -> int:
    """Train a job where `--on` says, from where it is to its end; the exit code. What it prints goes to `stdout`, if
    that is given."""
    place = ["--storage", str(run.storage), "--job", run.job_id]
    if on is None:
        with _as_file(spec) as file:
            return run_module("codistill.local", str(file), *place, stdout=stdout)
    fence = (run.fences() or [0])[-1] + 1
    if _is_address(on):
        from jobs.cli.ray_job import run_as_ray_job

        with redirect_stdout(stdout or sys.stdout):
            return run_as_ray_job(on, spec, run, fence)
    words = [*place, "--fence", str(fence), "--address", on]
    with _as_file(spec) as file:
        code = run_module("cluster.launch", "--spec-file", str(file), *words, stdout=stdout)
    return exit_of_attempt(run, fence) if code == Exit.DONE else code


def _is_address(on: str) -> bool:
    return on.startswith(("http://", "https://"))


def _load(paths: Sequence[Path], settings: Sequence[str] | None, baseline: Baseline | None) -> JobSpec:
    checked = spec_of(paths, settings)
    return checked if baseline is None else baseline_of(checked, baseline)


def replay(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Its directory, or its id in --storage")],
    replica: Annotated[str, typer.Argument(metavar="REPLICA", help="replica-0, or 0")],
    storage: Storage = None,
) -> int:
    """Train a replica again from the ledger and the snapshots kept: does it end bit for bit as it did?"""
    found = run_dir_of(run, storage)
    index = replica.removeprefix("replica-")
    if not index.isdecimal():
        raise CommandError(f"{replica} is not a replica that has teachers; name replica-0, replica-1, ...", Exit.USAGE)
    return run_module("codistill.replay", str(found.root), index)


def run_dir_of(word: str, storage: Path | None) -> RunDir:
    """A run by its directory, or by its id. Raises `CommandError` when there is none."""
    path = Path(word)
    parent, job_id = (path.absolute().parent, path.name) if path.is_dir() else (storage or home() / "runs", word)
    try:
        run = RunDir(parent.absolute(), checked_id(job_id))
    except ValueError:
        raise CommandError(
            f"{word} is neither a run directory nor the id of a job; --storage names where runs are", Exit.USAGE
        ) from None
    if not run.root.is_dir():
        raise CommandError(f"there is no run {job_id} in {parent}; --storage names another place", Exit.JOB_NOT_FOUND)
    return run


@contextmanager
def _as_file(spec: JobSpec) -> Generator[Path]:
    """The spec as it was checked, for the process that runs it."""
    with tempfile.TemporaryDirectory(prefix="codistill-") as directory:
        path = Path(directory) / "spec.json"
        path.write_text(spec.model_dump_json())
        yield path


def refuse_missing_data(spec: JobSpec) -> None:
    """Raise `CommandError` when the data set that the spec names is not on this machine."""
    from codistill.data.catalog import find_dataset
    from codistill.data.home import DataError

    name = getattr(spec.recipe, "data", None)
    if name is None:
        return
    try:
        find_dataset(name)
    except DataError as error:
        raise CommandError(str(error), Exit.UNAVAILABLE) from None


def storage_or_default(given: Path | None) -> Path:
    """`given` as it is, or the default, made when missing."""
    if given is not None:
        return given.absolute()
    directory = home() / "runs"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot create {directory}: {error.strerror}; set CODISTILL_HOME or --storage") from error
    return directory


def run_module(module: str, *arguments: str, stdout: IO[str] | None = None) -> int:
    """Run one of our modules on this terminal; its exit code. Ctrl-C is the child's to handle: it writes a last
    checkpoint. What it prints goes to `stdout`, if that is given."""
    command = [sys.executable, "-P", "-m", module, *arguments]
    child = subprocess.Popen(command, stdout=stdout)
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = child.wait()
    finally:
        signal.signal(signal.SIGINT, previous)
    return Exit.INTERRUPTED if code == -signal.SIGINT else code if code >= 0 else Exit.OUR_BUG


def require_cluster(what: str) -> None:
    """Raise `CommandError` unless the extra that brings Ray and the service is installed."""
    from importlib.util import find_spec

    missing = [name for name in ("ray", "sqlalchemy", "alembic") if find_spec(name) is None]
    if missing:
        message = f"{what} needs {', '.join(missing)}, not installed here: pip install 'codistill[cluster]'"
        raise CommandError(message, Exit.UNAVAILABLE)
