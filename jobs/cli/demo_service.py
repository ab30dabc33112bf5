"""A service for the time of a demo: a home, a head and a store of its own, and nothing left that runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from codistill.data.home import data_home
from jobs.cli.exits import CommandError, Exit
from jobs.cli.output import say

START_TIMEOUT_S = 90.0


def new_place(demos: Path) -> Path:
    """A home for one demo: with it as CODISTILL_HOME, `codistill serve` finds its jobs again."""
    demos.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=demos))


@contextmanager
def own_service(place: Path) -> Generator[str]:
    """A service with `place` as its home and a head of its own; yields its address, leaves no process behind. Its store
    stays if all went well."""
    from jobs import head as heads

    port = heads.free_ports(1)[0]
    # Two at least: a pair starts whole, and on one core it only takes longer.
    cpus = max(2, os.cpu_count() or 1)
    command = [sys.executable, "-P", "-m", "jobs.cli", "serve", "--port", str(port)]
    # The demo is small, and its machine may be anybody's.
    command += ["--cpus", str(cpus), "--object-store-mb", "256", "--max-disk-percent", "99"]
    log_path = place / "serve.log"
    kept: tuple[str, ...] = ()
    try:
        say("starting a Ray head and a service for the demo ...")
        with log_path.open("w") as log:
            # A session of its own: Ctrl-C is ours to handle, so that everything is ended in order.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment_of(place),
                start_new_session=True,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_ready(url, process, log_path)
            yield url
            kept = ("jobs.db", "jobs.db-wal")
        finally:
            # Without the time for an orderly end, the head is what the command would only withdraw from.
            process.kill()
            process.wait()
    finally:
        known = heads.remembered(place)
        if known is not None:
            heads.end(place, known)
        clear(place, kept)


def environment_of(place: Path) -> dict[str, str]:
    """The demo's own home and store, whatever the user's service has; data are looked for where the user has them."""
    environment = {**os.environ, "CODISTILL_HOME": str(place), "CODISTILL_DATA": str(data_home())}
    environment.pop("CODISTILL_DATABASE", None)
    return environment


def clear(place: Path, kept: Collection[str]) -> None:
    """Leave the run directories and, of the service's files, those `kept`; nothing where nothing was run."""
    (place / "serve.log").unlink(missing_ok=True)
    for path in (place / "service").glob("*"):
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for directory in (place / "service", place / "runs", place):
        with suppress(OSError):  # it is not there, or something is in it
            directory.rmdir()


def _wait_ready(url: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
    from jobs.client import Client

    give_up = time.monotonic() + START_TIMEOUT_S
    with Client(url) as client:
        while not client.ready():
            if process.poll() is not None or time.monotonic() > give_up:
                lines = log_path.read_text(errors="replace").strip().splitlines()
                last = lines[-1].removeprefix("codistill: ") if lines else f"nothing was said in {START_TIMEOUT_S:g} s"
                raise CommandError(
                    f"the demo's service did not start: {last}; codistill doctor looks at the usual causes",
                    Exit.UNAVAILABLE,
                )
            time.sleep(0.2)
