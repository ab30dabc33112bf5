"""One attempt at a job: a Ray Train run per replica, each in a thread, watched from here until all have ended.

The job's own replicas run side by side; once all of them have ended well, those of each control arm do, in their place.
`result.json` says how the attempt ended, and is written before anything is tidied up.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from cluster import trainer
from cluster.decisions import (
    HANG_AFTER_S,
    LifeSign,
    Rung,
    outcome_from_beat,
    overdue,
    refusal,
    rung,
)
from cluster.directory import namespace_of, start_directory
from cluster.trainer import RunFailed, TrainRun
from cluster.worker import train
from codistill.capacity import nodes_from_ray
from codistill.controls import may_follow
from codistill.data.home import data_home
from codistill.outcome import Reason, ReplicaOutcome, attempt_result
from codistill.progress import progress_lines
from codistill.restarts import Failure, GiveUp, Retry, after_failure
from codistill.run_dir import RunDir, StorageError, read_json, write_json
from codistill.spec import Arm, JobSpec, replica_name

log = logging.getLogger("codistill.driver")

WATCH_INTERVAL_S = 0.2
PROGRESS_INTERVAL_S = 3.0


@dataclass
class Attempt:
    """One try at a job, by this process."""

    run: RunDir
    fence: int
    say: Callable[[str], None] = print
    """Where lines for people go."""
    hang_after_s: float = HANG_AFTER_S
    signals: list[int] = field(default_factory=list[int])
    """Signals received; whoever installs a handler appends to it."""

    def execute(self) -> dict[str, Any]:
        """Run to the end, whatever it is, and return the content of `result.json`.

        The calling process is attached to Ray already. Raises `StorageError` when this fence may not be used or the
        storage cannot be written; nothing else.
        """
        started_at = time.time()
        self.run.start_attempt(self.fence, started_at)
        with logging_to(self.run, self.fence):
            try:
                outcomes, reason = self._run(self.run.read_spec())
            except StorageError as error:
                outcomes, reason = {}, Reason("storage", str(error))
            except Exception as error:
                log.exception("the driver failed")
                outcomes, reason = {}, Reason("driver_error", f"the driver failed: {type(error).__name__}: {error}")
            result = attempt_result(
                self.run.job_id,
                self.fence,
                outcomes,
                started_at=started_at,
                ended_at=time.time(),
                reason=reason,
                estimate=read_json(self.run.estimate),
            )
            write_json(self.run.result(self.fence), result)
            if result["outcome"] == "succeeded":
                self.run.clear_exchange()
            log.info("%s%s", result["outcome"], f": {result['reason']['message']}" if result["reason"] else "")
            shutil.rmtree(self.run.root / "ray", ignore_errors=True)
        return result

    def _run(self, spec: JobSpec) -> tuple[dict[str, ReplicaOutcome], Reason | None]:
        trainer.prepare_environment()
        refused = refusal(spec, nodes_from_ray(ray.nodes()), node_bytes_of(self.run))
        if refused is not None:
            return {}, refused
        namespace = namespace_of(self.run.job_id, self.fence)
        directory = start_directory(namespace)
        try:
            return self._train_arms(spec, namespace, directory)
        finally:
            with contextlib.suppress(RayError):
                ray.kill(directory)

    def _train_arms(
        self, spec: JobSpec, namespace: str, directory: Any
    ) -> tuple[dict[str, ReplicaOutcome], Reason | None]:
        began = time.monotonic()
        outcomes, reason = self._train_arm("replica", spec, namespace, directory, began)
        if spec.controls and not may_follow(outcomes):
            log.warning("no %s: controls follow replicas that all succeeded", ", ".join(spec.controls))
            return outcomes, reason
        for control in spec.controls:
            of_control, its_reason = self._train_arm(control, spec, namespace, directory, began)
            outcomes |= of_control
            reason = reason or its_reason
        return outcomes, reason

    def _train_arm(
        self, arm: Arm, spec: JobSpec, namespace: str, directory: Any, began: float
    ) -> tuple[dict[str, ReplicaOutcome], Reason | None]:
        replicas = [
            ReplicaRun(self.run, self.fence, spec, index, arm, namespace, directory)
            for index in range(spec.replicas.count)
        ]
        reason = Watch(self, spec, replicas, directory, began).until_all_ended()
        ended = sorted(replicas, key=lambda replica: replica.ended_at)  # so that the first failure is the reason
        return {replica.name: replica.so_far() for replica in ended}, reason


def node_bytes_of(run: RunDir) -> int | None:
    """What was told that a rank takes of its node's memory; None where nobody was asked, or it was not known."""
    told = read_json(run.estimate)
    return told and told.get("node_bytes_per_rank")


class ReplicaRun:
    """One replica: its Ray Train runs, one after another, in a thread of its own."""

    def __init__(
        self, run: RunDir, fence: int, spec: JobSpec, index: int, arm: Arm, namespace: str, directory: Any
    ) -> None:
        self.name = replica_name(index, arm)
        self.outcome: ReplicaOutcome | None = None
        self.ended_at = float("inf")
        self.failures: list[Failure] = []
        self.life = LifeSign()
        self._run, self._fence, self._max_failures = run, fence, spec.limits.max_failures
        self._started = time.monotonic()
        self._stopping = threading.Event()
        self._train_run = TrainRun(
            replica=self.name,
            function=train,
            config={
                "storage": str(run.storage),
                "job": run.job_id,
                "fence": fence,
                "index": index,
                "arm": arm,
                "data_home": str(data_home()),
                "namespace": namespace,
            },
            ranks=spec.replicas.ranks,
            cpus=spec.replicas.cpus,
            gpus=spec.replicas.gpus,
            memory_bytes=node_bytes_of(run),
            scratch=run.root / "ray",
            directory=directory,
        )
        self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """From now on a failure is an end, and nothing is started again."""
        self._stopping.set()

    def so_far(self) -> ReplicaOutcome:
        """How it ended; "cancelled" while it has not."""
        return self.outcome or self._from_beat("cancelled", "it did not stop in time and was left behind")

    def _work(self) -> None:
        try:
            self.outcome = self._until_ended()
        except Exception as error:  # a fault of ours must not leave the attempt waiting for ever
            log.exception("%s: its thread failed", self.name)
            self.outcome = self._from_beat("failed", f"{type(error).__name__}: {error}")
        self.ended_at = time.monotonic()
        log.info("%s: %s at step %d", self.name, self.outcome.outcome, self.outcome.steps)

    def _until_ended(self) -> ReplicaOutcome:
        while not self._stopping.is_set():
            try:
                return ReplicaOutcome(**self._train_run.fit())
            except RunFailed as failed:
                if self._stopping.is_set():
                    break
                decision = self._judge(failed)
                if isinstance(decision, GiveUp):
                    return self._from_beat("failed", decision.error)
                self._stopping.wait(decision.delay_s)
        return self._from_beat("cancelled", None)

    def _judge(self, failed: RunFailed) -> Retry | GiveUp:
        beat = self._beat() or {"step": 0, "incarnation": -1}
        step = beat["step"]
        self.life = LifeSign(ended_incarnation=beat["incarnation"])
        self.failures.append(Failure(step, str(failed), failed.died))
        decision = after_failure(self.failures, self._max_failures)
        log.warning(
            "%s: failure %d of at most %d, at step %d: %s: %s",
            self.name, len(self.failures), self._max_failures, step, failed, decision, exc_info=failed.__cause__,
        )  # fmt: skip
        return decision

    def _beat(self) -> dict[str, Any] | None:
        return self._run.read_heartbeats(self._fence).get(self.name)

    def _from_beat(self, outcome: str, error: str | None) -> ReplicaOutcome:
        seconds = round(time.monotonic() - self._started, 3)
        return outcome_from_beat(outcome, self._beat(), error=error, seconds=seconds)


class Watch:
    """The main thread's part, for the replicas of one arm: stops, deadlines, hangs, and a line now and then."""

    def __init__(
        self, attempt: Attempt, spec: JobSpec, replicas: list[ReplicaRun], directory: Any, attempt_began: float
    ) -> None:
        self._attempt, self._spec, self._replicas, self._directory = attempt, spec, replicas, directory
        self._run, self._fence = attempt.run, attempt.fence
        self._reason: Reason | None = None
        self._stop_since: float | None = None
        self._pressed: Rung = "wait"
        self._attempt_began, self._started = attempt_began, time.monotonic()
        self._unstarted = {replica.name for replica in replicas}
        self._next_line = self._started

    def until_all_ended(self) -> Reason | None:
        """Start the replicas and return when each has ended or had to be left behind; the reason when the attempt as
        a whole gave up."""
        self._look_for_reasons_to_stop(self._started)  # asked for while the arm before ended: then nothing is started
        for replica in self._replicas:
            replica.start()
        while self._running() and self._pressed != "leave":
            now = time.monotonic()
            beats = self._run.read_heartbeats(self._fence)
            self._unstarted -= {name for name, beat in beats.items() if beat["first_step_at"] is not None}
            self._unstarted -= {replica.name for replica in self._replicas if replica.outcome is not None}
            self._end_hanging(beats, now)
            self._look_for_reasons_to_stop(now)
            if self._stop_since is not None:
                self._press(rung(now - self._stop_since, hurried=len(self._attempt.signals) > 1))
            self._show(now)
            time.sleep(WATCH_INTERVAL_S)
        self._show(float("inf"))
        return self._reason

    def _running(self) -> list[ReplicaRun]:
        return [replica for replica in self._replicas if replica.outcome is None]

    def _look_for_reasons_to_stop(self, now: float) -> None:
        if self._stop_since is not None:
            return
        if self._attempt.signals:
            self._say(f"signal {self._attempt.signals[0]}: each replica writes a last checkpoint and ends")
            self._run.request_stop(self._fence)
        else:
            self._reason = overdue(self._spec, now - self._attempt_began, ()) or overdue(
                self._spec, now - self._started, self._unstarted
            )
            if self._reason is not None:
                self._say(f"stopping: {self._reason.message}")
                self._run.request_stop(self._fence)
        if self._run.stop_requested(self._fence):
            self._stop_since = now
            log.info("a stop was asked for")
            for replica in self._replicas:
                replica.stop()
                if replica.life.beat_time is None:  # still starting, or waiting for room: it has nothing to save
                    trainer.kill(self._directory, replica.name)

    def _press(self, to: Rung) -> None:
        if to == self._pressed:
            return
        self._pressed = to
        for replica in self._running():
            log.warning("%s still runs after a stop was asked for: %s", replica.name, to)
            match to:
                case "abort":
                    trainer.abort(self._directory, replica.name)
                case "kill":
                    trainer.kill(self._directory, replica.name)
                case _:
                    pass

    def _end_hanging(self, beats: dict[str, dict[str, Any]], now: float) -> None:
        for replica in self._running():
            replica.life.observe(beats.get(replica.name), now)
            if replica.life.hangs(now, limit_s=self._attempt.hang_after_s):
                replica.life.changed_at = now  # once is enough, until it beats again
                self._say(f"{replica.name}: no sign of life for {self._attempt.hang_after_s:g} s; it is started again")
                trainer.kill_workers(self._directory, replica.name)

    def _show(self, now: float) -> None:
        if now >= self._next_line:
            self._next_line = now + PROGRESS_INTERVAL_S
            for line in progress_lines(self._run, self._fence):
                self._attempt.say(line)

    def _say(self, line: str) -> None:
        log.warning(line)
        self._attempt.say(line)


@contextlib.contextmanager
def logging_to(run: RunDir, fence: int) -> Generator[None]:
    """Write the driver's log into the attempt."""
    handler = logging.FileHandler(run.attempt(fence) / "driver.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
