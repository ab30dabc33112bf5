"""The driver's command: `python -P -m cluster.launch --storage DIR --job ID --fence N`.

As the entrypoint of a Ray Job it finds its cluster in the environment; by hand, name one with `--address`. It exits
with 0 once `result.json` is written, whatever that says, and with 2 when there was no attempt at all.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from cluster.attach import NoCluster, attach
from codistill.run_dir import RunDir, StorageError
from codistill.signals import noting
from codistill.spec_errors import SpecError
from codistill.spec_files import load_spec

EXIT_NO_ATTEMPT = 2


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    say = Speaker().say
    try:
        run = RunDir(given.storage.resolve(), given.job)
        spec = run.read_spec() if given.spec_file is None else load_spec(given.spec_file)
        attach(given.address, say)
        run.create(spec)  # last, so that a refusal leaves nothing behind
    except SpecError as error:
        for problem in error.problems:
            print(f"codistill: {problem}", file=sys.stderr)
        return EXIT_NO_ATTEMPT
    except (StorageError, NoCluster, ValueError) as error:
        print(f"codistill: {error}", file=sys.stderr)
        return EXIT_NO_ATTEMPT
    return drive(run, given.fence, say)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cluster.launch", description="Run one attempt of a job on a Ray cluster.")
    parser.add_argument("--storage", type=Path, required=True, help="directory that all nodes share")
    parser.add_argument("--job", required=True, help="id of the job")
    parser.add_argument("--fence", type=int, required=True, help="number of the attempt, higher than all before")
    parser.add_argument(
        "--address",
        help="of the cluster; 'auto' takes one of this machine or starts one for this run, 'local' always starts one",
    )
    parser.add_argument("--spec-file", type=Path, help="a .toml or .json spec: the job is created first")
    return parser.parse_args(arguments)


def drive(run: RunDir, fence: int, say: Callable[[str], None]) -> int:
    """Execute the attempt in the attached cluster, under signal handlers of our own, and leave the cluster."""
    import ray

    from cluster.driver import Attempt

    attempt = Attempt(run, fence, say=say)
    # Only now: ray.init has installed handlers of its own.
    note = noting(attempt.signals)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    try:
        result = attempt.execute()
    except StorageError as error:
        print(f"codistill: {error}", file=sys.stderr)
        return EXIT_NO_ATTEMPT
    finally:
        ray.shutdown()
    reason = result["reason"]
    say(f"{run.job_id}: {result['outcome']}" + (f": {reason['message']}" if reason else ""))
    return 0


class Speaker:
    """Prints lines until nobody listens any more, which is no reason to end a training."""

    def __init__(self) -> None:
        self._heard = True

    def say(self, line: str) -> None:
        if not self._heard:
            return
        try:
            print(line, flush=True)
        except OSError:
            self._heard = False
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at exit


if __name__ == "__main__":
    sys.exit(main())
