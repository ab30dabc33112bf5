"""All replicas of an attempt as processes of this machine: started, started again when they die, and stopped.

The job's own replicas train side by side; once all of them have ended well, each control arm does, in turn. Whoever has
not stopped a while after being asked to, or by a second signal, is killed.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from codistill.controls import may_follow
from codistill.deadlines import overdue
from codistill.outcome import Reason, ReplicaOutcome
from codistill.processes import ReplicaProcesses
from codistill.progress import progress_lines
from codistill.restarts import Failure, GiveUp, Retry, after_failure
from codistill.run_dir import RunDir, read_json
from codistill.signals import noting
from codistill.spec import Arm, JobSpec, replica_name

POLL_S = 0.1
PROGRESS_S = 2.0
KILL_AFTER_S = 25.0
"""Time for a last checkpoint after a stop was asked for."""


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
        self._began = self._arm_began = time.monotonic()
        self._next_progress = self._began + PROGRESS_S
        self._unstarted: set[str] = set()
        self._signals: list[int] = []
        self._stop_since: float | None = None
        self._reason: Reason | None = None

    def until_all_ended(self) -> tuple[dict[str, ReplicaOutcome], Reason | None]:
        """Train every arm; with the reason when the attempt as a whole gave up."""
        with _noting_signals(self._signals):
            outcomes = self._train("replica")
            if may_follow(outcomes):
                for control in self._spec.controls:
                    outcomes |= self._train(control)
            elif self._spec.controls:
                print(f"no {', '.join(self._spec.controls)}: controls follow replicas that all succeeded", flush=True)
        return outcomes, self._reason

    def _train(self, arm: Arm) -> dict[str, ReplicaOutcome]:
        children = [Child(index, arm) for index in range(self._spec.replicas.count)]
        self._arm_began, self._unstarted = time.monotonic(), {child.name for child in children}
        try:
            while any(child.outcome is None for child in children):
                self._note_first_steps(children)
                self._look_for_reasons_to_stop()
                self._tend(children)
                self._end_what_does_not_stop(children)
                self._show()
                time.sleep(POLL_S)
        finally:
            for child in children:
                if child.processes is not None:
                    child.processes.kill()
        return {child.name: child.outcome for child in children if child.outcome is not None}

    def _note_first_steps(self, children: Sequence[Child]) -> None:
        if self._unstarted:
            beats = self._run.read_heartbeats(self._fence)
            self._unstarted -= {name for name, beat in beats.items() if beat["first_step_at"] is not None}
            self._unstarted -= {child.name for child in children if child.outcome is not None}

    def _look_for_reasons_to_stop(self) -> None:
        if self._stop_since is not None:
            return
        now = time.monotonic()
        if not self._run.stop_requested(self._fence):
            if not self._signals:
                self._reason = overdue(self._spec, now - self._began, ()) or overdue(
                    self._spec, now - self._arm_began, self._unstarted
                )
                if self._reason is None:
                    return
            print("stopping: each replica writes a last checkpoint", flush=True)
            self._run.request_stop(self._fence)
        self._stop_since = now

    def _end_what_does_not_stop(self, children: Sequence[Child]) -> None:
        if self._stop_since is None:
            return
        if len(self._signals) > 1:
            why = "killed at a second signal"
        elif time.monotonic() - self._stop_since > KILL_AFTER_S:
            why = f"killed, since it had not stopped {KILL_AFTER_S:g} s after it was asked to"
        else:
            return
        for child in children:
            if child.outcome is None and child.processes is not None:
                child.processes.kill()
                error = f"{why}; what it did after its last checkpoint is lost"
                print(f"{child.name}: {error}", flush=True)
                child.outcome = ReplicaOutcome(
                    "cancelled", steps=self._step(child), incarnations=len(child.failures) + 1, error=error
                )

    def _step(self, child: Child) -> int:
        """Updates that it had completed when it was last heard of."""
        return (self._run.read_heartbeats(self._fence).get(child.name) or {}).get("step", 0)

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
        step = self._step(child)
        child.failures.append(Failure(step, ended.last_words(code), died=code < 0))
        print(f"{child.name}: {child.failures[-1].error}", flush=True)
        match after_failure(child.failures, self._spec.limits.max_failures):
            case GiveUp(error):
                child.outcome = ReplicaOutcome("failed", steps=step, incarnations=len(child.failures), error=error)
            case Retry(delay_s):
                child.retry_at = time.monotonic() + delay_s


@contextmanager
def _noting_signals(signals: list[int]) -> Generator[None]:
    """Within it, Ctrl-C and SIGTERM are added to `signals` and do nothing else."""
    note = noting(signals)
    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
