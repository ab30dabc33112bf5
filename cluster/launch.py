"""The driver's command: `python -P -m cluster.launch --storage DIR --job ID --fence N`.

As the entrypoint of a Ray Job it finds its cluster in the environment; by hand, name one with `--address`. It exits
with 0 once `result.json` is written, whatever that says, and with 2 when there was no attempt at all.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codistill.run_dir import RunDir, StorageError
from codistill.spec_errors import SpecError, load_spec

EXIT_NO_ATTEMPT = 2
OBJECT_STORE_BYTES = 2 * 10**9
"""Of an embedded cluster; what does not fit goes to disk. (Ray would take 30 % of all memory.)"""


class NoCluster(RuntimeError):
    """There is no Ray cluster to run on; the message says what would help."""


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    say = Speaker().say
    try:
        run = RunDir(given.storage.resolve(), given.job)
        if given.spec_file is not None:
            run.create(load_spec(given.spec_file))
        run.read_spec()
        attach(given.address, say)
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


def attach(address: str | None, say: Callable[[str], None]) -> None:
    """Join the cluster at `address`, or start one that ends with this process. Raises `NoCluster`."""
    named = os.environ.get("RAY_ADDRESS")
    if address is None and named is None:
        raise NoCluster("no Ray cluster is named; give --address (an address, 'auto' or 'local') or set RAY_ADDRESS")
    if address in (None, "auto") and named is not None:
        address = named
    if address == "local" or (address == "auto" and not _join_running()):
        _start_embedded(say)
    elif address != "auto":
        _join(str(address))


def drive(run: RunDir, fence: int, say: Callable[[str], None]) -> int:
    """Execute the attempt in the attached cluster, under signal handlers of our own, and leave the cluster."""
    import ray

    from cluster.driver import Attempt

    attempt = Attempt(run, fence, say=say)
    # Only now: ray.init has installed handlers of its own.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: attempt.signals.append(received))
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


# ---------------------------------------------------------------- clusters


def _init(**where: Any) -> None:
    import ray

    ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)


def _join(address: str) -> None:
    try:
        _init(address=address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NoCluster(f"no Ray cluster can be joined at {address}: {first_line}") from error


def _join_running() -> bool:
    """Join a cluster that runs on this machine; False when there is none."""
    try:
        _init(address="auto")
    except ConnectionError:
        return False
    return True


def _start_embedded(say: Callable[[str], None]) -> None:
    cpus = len(os.sched_getaffinity(0))
    say(f"no Ray cluster on this machine: starting one of {cpus} CPUs for this run only")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        # Ray's ports are open to the network even here. Left to itself, Ray writes its token for all to read.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    _init(address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES)


if __name__ == "__main__":
    sys.exit(main())
