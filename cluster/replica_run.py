"""One replica of an attempt: its Ray Train runs, one after another, until one ends well or no other may be tried."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from cluster.decisions import LifeSign, outcome_from_beat
from cluster.handles import Handles
from cluster.trainer import RunFailed, TrainRun
from cluster.worker import train
from codistill.data.home import data_home
from codistill.outcome import ReplicaOutcome
from codistill.restarts import Failure, GiveUp, Retry, after_failure
from codistill.run_dir import RunDir, read_json
from codistill.spec import Arm, JobSpec, replica_name
from codistill.telemetry import note_failed

log = logging.getLogger("codistill.driver")


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
        self.handles = Handles(directory, self.name)
        self._run, self._fence, self._max_failures = run, fence, spec.limits.max_failures
        self._total_steps, self._started = spec.total_steps, time.monotonic()
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
            outcome = self._until_ended()
        except Exception as error:  # a fault of ours must not leave the attempt waiting for ever
            log.exception("%s: its thread failed", self.name)
            outcome = self._from_beat("failed", f"{type(error).__name__}: {error}")
        if outcome.outcome == "failed":
            note_failed(self._run, self._fence, self.name, self._total_steps)
        self.ended_at, self.outcome = time.monotonic(), outcome
        log.info("%s: %s at step %d", self.name, outcome.outcome, outcome.steps)

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


def node_bytes_of(run: RunDir) -> int | None:
    """What was told that a rank takes of its node's memory; None where nobody was asked, or it was not known."""
    told = read_json(run.estimate)
    return told and told.get("node_bytes_per_rank")
