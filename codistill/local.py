"""All replicas of a job on this machine, without Ray: `python -P -m codistill.local SPEC --storage DIR --job ID`.

Each replica is a process of its own and exchanges weights through memory-mapped files; the run directory is the same
as on Ray. One that dies is started again, as a new incarnation from its last checkpoint, while the others train on
(`codistill.supervise`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from codistill.controls import may_follow
from codistill.deadlines import overdue
from codistill.exchange.transport import Hub, MemoryTransport
from codistill.outcome import Reason, ReplicaOutcome, attempt_result
from codistill.progress import progress_lines
from codistill.run_dir import RunDir, StorageError, write_json
from codistill.spec import Arm, ObjectStoreTransport, replica_name
from codistill.spec import MemoryTransport as MemoryTransportSpec
from codistill.spec_files import load_spec
from codistill.supervise import Supervisor

EXIT_BAD_SPEC, EXIT_UNAVAILABLE, EXIT_FAILED, EXIT_CANCELLED = 2, 3, 100, 103


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="codistill.local", description="Run a job on this machine, without Ray.")
    parser.add_argument("spec", nargs="?", type=Path, help="a .toml or .json spec; left out, the job goes on")
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--job", required=True)
    given = parser.parse_args(arguments)
    try:
        run = RunDir(given.storage.resolve(), given.job)
        if given.spec is not None:
            run.create(load_spec(given.spec))
        return run_job(run)
    except StorageError as error:
        print(f"codistill: {error}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    except ValueError as error:  # a bad spec or id
        print(f"codistill: {error}", file=sys.stderr)
        return EXIT_BAD_SPEC


def run_job(run: RunDir) -> int:
    """Start the next attempt of the job, follow it to its end, and return the exit code. Raises `StorageError` and
    `ValueError` when the job cannot run here at all."""
    spec = run.read_spec()
    if isinstance(spec.exchange.transport, ObjectStoreTransport):
        raise ValueError(
            "exchange.transport 'object_store' is Ray's; use kind = 'auto' or 'files' here, or run with --on auto"
        )
    fence = (run.fences() or [0])[-1] + 1
    started_at = time.time()
    run.start_attempt(fence, started_at)
    print(f"job {run.job_id}, attempt {fence}: {run.root}", flush=True)
    if isinstance(spec.exchange.transport, MemoryTransportSpec):
        outcomes, reason = _in_this_process(run, fence)
    else:
        outcomes, reason = Supervisor(run, spec, fence).until_all_ended()
    ended_at = time.time()
    result = attempt_result(run.job_id, fence, outcomes, started_at=started_at, ended_at=ended_at, reason=reason)
    write_json(run.result(fence), result)
    if result["outcome"] == "succeeded":
        run.clear_exchange()
    for line in progress_lines(run, fence):
        print(line, flush=True)
    return _report(result)


def run_in_turns(run: RunDir, fence: int) -> dict[str, dict[str, Any]]:
    """All replicas in this process, in step with each other: all publish, then all read and train one step."""
    results: dict[str, dict[str, Any]] = {}
    for name, end in _ends_in_turns(run, fence, lambda: False):
        if isinstance(end, Exception):
            raise end
        results[name] = end
    return results


def _ends_in_turns(
    run: RunDir, fence: int, should_stop: Callable[[], bool]
) -> Generator[tuple[str, dict[str, Any] | Exception]]:
    """Of each replica as it ends, its name and its entry of `result.json`; or its error, which is the last: the others
    would wait for its turns."""
    from codistill.replica import replica_turns  # torch is slow to import, and a supervisor needs none

    hub = Hub()
    turns = {
        replica_name(index): replica_turns(
            run,
            fence=fence,
            index=index,
            connect=lambda scope: MemoryTransport(hub, scope.index, keep=scope.keep),
            should_stop=should_stop,
        )
        for index in range(run.read_spec().replicas.count)
    }
    try:
        while turns:
            for name, turn in list(turns.items()):
                try:
                    next(turn)
                except StopIteration as end:
                    del turns[name]
                    yield name, end.value
                except Exception as error:
                    yield name, error
                    return
    finally:
        for turn in turns.values():
            turn.close()


def _in_this_process(run: RunDir, fence: int) -> tuple[dict[str, ReplicaOutcome], Reason | None]:
    """The job's own replicas in turns, then those of its controls, which need no turns; with the reason when the
    attempt as a whole gave up. An error of a control is its own, one of the job's replicas ends all."""
    spec, began = run.read_spec(), time.monotonic()
    outcomes: dict[str, ReplicaOutcome] = {}
    reason: Reason | None = None

    def late() -> Reason | None:
        return overdue(spec, time.monotonic() - began, ())

    def should_stop() -> bool:
        return late() is not None

    for name, end in list(_ends_in_turns(run, fence, should_stop)):  # all are closed, and have told how far they came
        if not isinstance(end, Exception):
            outcomes[name] = ReplicaOutcome(**end)
            continue
        traceback.print_exception(end)
        outcomes[name] = _so_far("failed", run, fence, name, f"{type(end).__name__}: {end}")
        reason = Reason("replica_failed", f"{name} failed: {outcomes[name].error}", name)
        for other in {replica_name(index) for index in range(spec.replicas.count)} - set(outcomes):
            outcomes[other] = _so_far("cancelled", run, fence, other, f"{name} failed beside it")
    if may_follow(outcomes):
        for arm in spec.controls:
            for index in range(spec.replicas.count):
                outcomes[replica_name(index, arm)] = _control_here(run, fence, index, arm, should_stop)
    if any(one.outcome == "cancelled" for one in outcomes.values()) and not run.stop_requested(fence):
        reason = reason or late()
    return outcomes, reason


def _control_here(run: RunDir, fence: int, index: int, arm: Arm, should_stop: Callable[[], bool]) -> ReplicaOutcome:
    from codistill.replica import train_replica

    try:
        hub = Hub()
        return ReplicaOutcome(
            **train_replica(
                run,
                fence=fence,
                index=index,
                arm=arm,
                connect=lambda scope: MemoryTransport(hub, scope.index, keep=scope.keep),
                should_stop=should_stop,
            )
        )
    except Exception as error:
        return _so_far("failed", run, fence, replica_name(index, arm), f"{type(error).__name__}: {error}")


def _so_far(outcome: str, run: RunDir, fence: int, name: str, error: str) -> ReplicaOutcome:
    step = (run.read_heartbeats(fence).get(name) or {}).get("step", 0)
    return ReplicaOutcome(outcome, steps=step, incarnations=1, error=error)


def _report(result: dict[str, Any]) -> int:
    reason = result["reason"]
    print(f"{result['outcome']}" + (f": {reason['message']}" if reason else ""), flush=True)
    print(json.dumps({name: entry["metrics"] for name, entry in result["replicas"].items()}), flush=True)
    return {"succeeded": 0, "cancelled": EXIT_CANCELLED}.get(result["outcome"], EXIT_FAILED)


if __name__ == "__main__":
    sys.exit(main())
