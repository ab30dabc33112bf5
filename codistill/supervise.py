"""All replicas of an attempt as processes of this machine: started, started again when they die, and stopped.

The job's own replicas train side by side; once all of them have ended well, each control arm does, in turn.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from codistill.controls import may_follow
from codistill.outcome import Reason, ReplicaOutcome
from codistill.processes import ReplicaProcesses
from codistill.progress import progress_lines
from codistill.restarts import Failure, GiveUp, Retry, after_failure
from codistill.run_dir import RunDir, read_json
from codistill.spec import Arm, JobSpec, replica_name

POLL_S = 0.1
PROGRESS_S = 2.0


@dataclass
class Child:
    """One replica, over all its starts."""

    index: int
    arm: Arm
    processes: ReplicaProcesses | None = None
    outcome: ReplicaOutcome | None = None
    failures: list[Failure] = field(default_factory=list[Failure])
    retry_at: float = 0.0

    @property
    def name(self) -> str:
        return replica_name(self.index, self.arm)


class Supervisor:
    """Tends the replicas of one attempt."""

    def __init__(self, run: RunDir, spec: JobSpec, fence: int) -> None:
        self._run, self._spec, self._fence = run, spec, fence
        self._deadline = time.monotonic() + spec.limits.max_runtime_s
        self._next_progress = time.monotonic() + PROGRESS_S
        self._stopping = threading.Event()
        self._reason: Reason | None = None

    def until_all_ended(self) -> tuple[dict[str, ReplicaOutcome], Reason | None]:
        """Train every arm; with the reason when the attempt as a whole gave up."""
        with _signals_set(self._stopping):
            outcomes = self._train("replica")
            if may_follow(outcomes):
                for control in self._spec.controls:
                    outcomes |= self._train(control)
            elif self._spec.controls:
                print(f"no {', '.join(self._spec.controls)}: controls follow replicas that all succeeded", flush=True)
        return outcomes, self._reason

    def _train(self, arm: Arm) -> dict[str, ReplicaOutcome]:
        children = [Child(index, arm) for index in range(self._spec.replicas.count)]
        try:
            while any(child.outcome is None for child in children):
                self._look_for_reasons_to_stop()
                self._tend(children)
                self._show()
                time.sleep(POLL_S)
        finally:
            for child in children:
                if child.processes is not None:
                    child.processes.kill()
        return {child.name: child.outcome for child in children if child.outcome is not None}

    def _look_for_reasons_to_stop(self) -> None:
        late = time.monotonic() > self._deadline
        if self._run.stop_requested(self._fence) or not (late or self._stopping.is_set()):
            return
        if not self._stopping.is_set():
            limit_s = self._spec.limits.max_runtime_s
            self._reason = Reason("max_runtime", f"it ran longer than limits.max_runtime_s = {limit_s:g}")
        print("stopping: each replica writes a last checkpoint", flush=True)
        self._run.request_stop(self._fence)

    def _show(self) -> None:
        if time.monotonic() >= self._next_progress:
            self._next_progress += PROGRESS_S
            for line in progress_lines(self._run, self._fence):
                print(line, flush=True)

    def _tend(self, children: Sequence[Child]) -> None:
        for child in children:
            if child.outcome is not None:
                continue
            if child.processes is None:
                self._start(child)
            elif (code := child.processes.poll()) is not None:
                self._note_end(child, child.processes, code)

    def _start(self, child: Child) -> None:
        """Start the replica if it is to run and it is time."""
        start = len(child.failures)
        if self._run.stop_requested(self._fence):
            child.outcome = ReplicaOutcome("cancelled", incarnations=start)
        elif time.monotonic() >= child.retry_at:
            child.processes = ReplicaProcesses(
                self._run, self._fence, child.index, ranks=self._spec.replicas.ranks, start=start, arm=child.arm
            )

    def _note_end(self, child: Child, ended: ReplicaProcesses, code: int) -> None:
        child.processes = None
        entry = read_json(self._run.replica(self._fence, child.name) / "result.json")
        if code == 0 and entry is not None:
            child.outcome = ReplicaOutcome(**entry)
            return
        step = (self._run.read_heartbeats(self._fence).get(child.name) or {}).get("step", 0)
        child.failures.append(Failure(step, ended.last_words(code), died=code < 0))
        print(f"{child.name}: {child.failures[-1].error}", flush=True)
        match after_failure(child.failures, self._spec.limits.max_failures):
            case GiveUp(error):
                child.outcome = ReplicaOutcome("failed", steps=step, incarnations=len(child.failures), error=error)
            case Retry(delay_s):
                child.retry_at = time.monotonic() + delay_s


@contextmanager
def _signals_set(stopping: threading.Event) -> Generator[None]:
    """Within it, Ctrl-C and SIGTERM set `stopping`."""
    previous = {number: signal.signal(number, lambda *_: stopping.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
