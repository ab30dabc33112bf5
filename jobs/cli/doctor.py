"""`codistill doctor`: whether this machine has what training and a service need, and what to do where it has not."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from jobs.checkup import (
    Finding,
    Grade,
    judge_database,
    judge_gpus,
    judge_port,
    judge_python,
    judge_room,
    judge_shared_memory,
    judge_storage,
    judge_versions,
    worst,
)
from jobs.cli.exits import Exit
from jobs.cli.output import Format, emit, emit_data, home, say, table
from jobs.serve_settings import DEFAULT_PORT

TORCH_TIMEOUT_S = 60


def doctor(
    storage: Annotated[
        Path | None, typer.Option(help="Run directories [default: runs in CODISTILL_HOME]", metavar="DIR")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where a service would listen")] = DEFAULT_PORT,
    output: Annotated[Format, typer.Option("-o", "--output", help="How to print")] = Format.TABLE,
) -> int:
    """Check versions, port, shared memory, storage, GPUs, database, and what would fit; exits with 3 when one fails."""
    findings = examine(storage or home() / "runs", port)
    if output is Format.TABLE:
        rows = [(one.grade, one.about, one.fact, one.remedy) for one in findings]
        emit(table(("", "WHAT", "FOUND", "REMEDY"), rows))
    else:
        emit_data([{**asdict(one), "grade": one.grade.value} for one in findings], output)
    grade = worst(findings)
    if grade is Grade.FAIL:
        say("mend what says fail; then: codistill doctor")
        return Exit.UNAVAILABLE
    say("next: codistill demo")
    return Exit.DONE


def examine(storage: Path, port: int) -> list[Finding]:
    """Everything, measured and judged. Starts a process that imports torch."""
    database = os.environ.get("CODISTILL_DATABASE") or f"sqlite:///{home() / 'service' / 'jobs.db'}"
    versions = {name: _version(name) for name in ("codistill", "torch", "ray", "psycopg")}
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible = _visible_gpus()
    return [
        judge_python(sys.version_info[:3]),
        *judge_versions(versions, needs_postgres=database.startswith("postgresql")),
        judge_port(port, free=_port_is_free(port), ours=_service_answers(port)),
        judge_shared_memory(_total_bytes(Path("/dev/shm"))),  # noqa: S108  looked at, not written to
        _storage(storage),
        judge_gpus(gpus, visible),
        *_database(database, has_driver=versions["ray"] is not None),
        judge_room(os.cpu_count() or 1, visible or 0, available_memory_bytes(_lines(Path("/proc/meminfo")))),
    ]


def _version(name: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None


def _port_is_free(port: int) -> bool:
    from jobs.head import port_is_free

    return port_is_free(port)


def _service_answers(port: int) -> bool:
    from jobs.client import Client

    with Client(f"http://127.0.0.1:{port}", timeout_s=2.0) as client:
        return client.alive()


def _total_bytes(path: Path) -> int | None:
    return shutil.disk_usage(path).total if path.is_dir() else None


def _storage(path: Path) -> Finding:
    from codistill.run_dir import StorageError
    from jobs.storage import check_storage

    # What is not there yet is made by the first run; what matters is where.
    nearest = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    try:
        check_storage(nearest)
    except StorageError as error:
        return judge_storage(str(path), str(error), None, None)
    kind = file_system_of(nearest.resolve(), _lines(Path("/proc/self/mounts")))
    return judge_storage(str(path), None, shutil.disk_usage(nearest).free, kind)


def _visible_gpus() -> int | None:
    """What torch sees, asked in a process of its own: this one stays light."""
    command = [sys.executable, "-P", "-c", "import torch; print(torch.cuda.device_count())"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TORCH_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return None
    last = done.stdout.strip().splitlines()[-1:] or [""]
    return int(last[0]) if done.returncode == 0 and last[0].isdigit() else None


def _database(url: str, *, has_driver: bool) -> list[Finding]:
    """Whether it answers; nothing is made or changed."""
    if not has_driver:  # what a service needs comes with Ray, and is told there
        return []
    import sqlalchemy as sa
    from sqlalchemy.exc import DBAPIError

    from jobs.errors import StoreError
    from jobs.store_engine import make_engine
    from jobs.store_errors import explain, place_of

    parsed = url.removeprefix("sqlite:///") if url.startswith("sqlite:///") else None
    if parsed is not None and not Path(parsed).exists():
        return [judge_database(f"{parsed}; made by the first codistill serve", None)]
    try:
        engine = make_engine(url)
    except StoreError as error:
        return [judge_database("", str(error))]
    try:
        with engine.connect() as connection:
            connection.execute(sa.text("SELECT count(*) FROM sqlite_master" if parsed is not None else "SELECT 1"))
    except DBAPIError as error:
        return [judge_database("", str(explain(engine.url, error)))]
    finally:
        engine.dispose()
    return [judge_database(place_of(engine.url), None)]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def available_memory_bytes(meminfo: Iterable[str]) -> int | None:
    """Of /proc/meminfo: what processes could still get."""
    for line in meminfo:
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def file_system_of(path: Path, mounts: Iterable[str]) -> str | None:
    """Of /proc/self/mounts: the kind of file system that `path` is on."""
    found = [line.split()[1:3] for line in mounts if len(line.split()) > 2]
    over = [(len(Path(point).parts), kind) for point, kind in found if path.is_relative_to(point)]
    return max(over)[1] if over else None
