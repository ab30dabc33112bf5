"""All replicas of a job on this machine, without Ray: `python -P -m codistill.local SPEC --storage DIR --job ID`.

Each replica is a process of its own and exchanges weights through memory-mapped files; the run directory is the same
as on Ray. One that dies is started again, as a new incarnation from its last checkpoint, while the others train on.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codistill.exchange.transport import FilesTransport, Hub, MemoryTransport
from codistill.outcome import Reason, ReplicaOutcome, attempt_result
from codistill.processes import ReplicaProcesses
from codistill.progress import progress_lines
from codistill.restarts import Failure, GiveUp, Retry, after_failure
from codistill.run_dir import RunDir, StorageError, read_json, write_json
from codistill.spec import JobSpec, ObjectStoreTransport, replica_name
from codistill.spec import MemoryTransport as MemoryTransportSpec
from codistill.spec_errors import load_spec

EXIT_BAD_SPEC, EXIT_UNAVAILABLE, EXIT_FAILED, EXIT_CANCELLED = 2, 3, 100, 103
POLL_S = 0.1
PROGRESS_S = 2.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="codistill.local", description="Run a job on this machine, without Ray.")
    parser.add_argument("spec", nargs="?", type=Path, help="a .toml or .json spec; left out, the job goes on")
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--replica", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--fence", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--rendezvous", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    try:
        run = RunDir(given.storage.resolve(), given.job)
        if given.replica is not None:
            return _replica_process(run, given.fence, given.replica, given.rank, given.rendezvous)
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
    reason: Reason | None = None
    if isinstance(spec.exchange.transport, MemoryTransportSpec):
        outcomes = {name: _as_outcome(entry) for name, entry in run_in_turns(run, fence).items()}
    else:
        outcomes, reason = _supervise(run, spec, fence)
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
    from codistill.replica import replica_turns  # torch is slow to import, and a supervisor needs none

    spec, hub = run.read_spec(), Hub()
    turns = {
        replica_name(index): replica_turns(
            run, fence=fence, index=index, connect=lambda scope: MemoryTransport(hub, scope.index, keep=scope.keep)
        )
        for index in range(spec.replicas.count)
    }
    results: dict[str, dict[str, Any]] = {}
    while len(results) < len(turns):
        for name, turn in turns.items():
            if name not in results:
                try:
                    next(turn)
                except StopIteration as end:
                    results[name] = end.value
    return results


# ---------------------------------------------------------------- one process per replica


@dataclass
class _Child:
    name: str
    index: int
    processes: ReplicaProcesses | None = None
    outcome: ReplicaOutcome | None = None
    failures: list[Failure] = field(default_factory=list[Failure])
    retry_at: float = 0.0


def _supervise(run: RunDir, spec: JobSpec, fence: int) -> tuple[dict[str, ReplicaOutcome], Reason | None]:
    """Start, tend and stop the replicas until each has ended; with the reason when the attempt as a whole gave up."""
    reason: Reason | None = None
    children = [_Child(replica_name(index), index) for index in range(spec.replicas.count)]
    deadline = time.monotonic() + spec.limits.max_runtime_s
    stopping = threading.Event()
    previous = {number: signal.signal(number, lambda *_: stopping.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    next_progress = time.monotonic() + PROGRESS_S
    try:
        while any(child.outcome is None for child in children):
            if not run.stop_requested(fence) and (stopping.is_set() or time.monotonic() > deadline):
                if not stopping.is_set():
                    reason = Reason(
                        "max_runtime", f"it ran longer than limits.max_runtime_s = {spec.limits.max_runtime_s:g}"
                    )
                print("stopping: each replica writes a last checkpoint", flush=True)
                run.request_stop(fence)
            for child in children:
                _tend(run, spec, fence, child)
            if time.monotonic() >= next_progress:
                next_progress += PROGRESS_S
                for line in progress_lines(run, fence):
                    print(line, flush=True)
            time.sleep(POLL_S)
    finally:
        for child in children:
            if child.processes is not None:
                child.processes.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)
    return {child.name: child.outcome for child in children if child.outcome is not None}, reason


def _tend(run: RunDir, spec: JobSpec, fence: int, child: _Child) -> None:
    """Start the replica if it is to run and does not; note how it ended if it did."""
    if child.outcome is not None:
        return
    if child.processes is None:
        if run.stop_requested(fence):
            child.outcome = ReplicaOutcome("cancelled", incarnations=len(child.failures))
        elif time.monotonic() >= child.retry_at:
            start = len(child.failures)
            child.processes = ReplicaProcesses(run, fence, child.index, ranks=spec.replicas.ranks, start=start)
        return
    ended, code = child.processes, child.processes.poll()
    if code is None:
        return
    child.processes = None
    entry = read_json(_result_path(run, fence, child))
    if code == 0 and entry is not None:
        child.outcome = _as_outcome(entry)
        return
    step = (run.read_heartbeats(fence).get(child.name) or {}).get("step", 0)
    child.failures.append(Failure(step, ended.last_words(code), died=code < 0))
    print(f"{child.name}: {child.failures[-1].error}", flush=True)
    match after_failure(child.failures, spec.limits.max_failures):
        case GiveUp(error):
            child.outcome = ReplicaOutcome("failed", steps=step, incarnations=len(child.failures), error=error)
        case Retry(delay_s):
            child.retry_at = time.monotonic() + delay_s


def _replica_process(run: RunDir, fence: int, index: int, rank: int, rendezvous: Path | None) -> int:
    from codistill.ranks import ALONE, Ranks, join_group
    from codistill.replica import train_replica

    spec = run.read_spec()
    orphaned = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        orphaned.set()

    threading.Thread(target=listen, daemon=True).start()
    ranks: Ranks = ALONE
    if rendezvous is not None:
        ranks = join_group(f"file://{rendezvous}", rank, spec.replicas.ranks, on_gpu=spec.on_cuda)
    entry = train_replica(
        run,
        fence=fence,
        index=index,
        connect=lambda scope: FilesTransport(run, scope.index, spec.replicas.count, keep=scope.keep),
        ranks=ranks,
        should_stop=orphaned.is_set,
    )
    if ranks.leads:
        write_json(run.replica(fence, replica_name(index)) / "result.json", entry)
    return 0


def _result_path(run: RunDir, fence: int, child: _Child) -> Path:
    return run.replica(fence, child.name) / "result.json"


def _as_outcome(entry: dict[str, Any]) -> ReplicaOutcome:
    return ReplicaOutcome(**entry)


def _report(result: dict[str, Any]) -> int:
    reason = result["reason"]
    print(f"{result['outcome']}" + (f": {reason['message']}" if reason else ""), flush=True)
    print(json.dumps({name: entry["metrics"] for name, entry in result["replicas"].items()}), flush=True)
    return {"succeeded": 0, "cancelled": EXIT_CANCELLED}.get(result["outcome"], EXIT_FAILED)


if __name__ == "__main__":
    sys.exit(main())
