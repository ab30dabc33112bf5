"""One attempt at a job: a Ray Train run per replica, each in a thread, watched from here until all have ended.

The job's own replicas run side by side; once all of them have ended well, those of each control arm do, in their place.
`result.json` says how the attempt ended, and is written before anything is tidied up.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.decisions import HANG_AFTER_S, refusal
from cluster.directory import namespace_of, start_directory
from cluster.replica_run import ReplicaRun, node_bytes_of
from cluster.slim_train import prepare_environment
from cluster.watch import Watch
from codistill.capacity import nodes_from_ray
from codistill.controls import may_follow
from codistill.outcome import Reason, ReplicaOutcome, attempt_result
from codistill.run_dir import RunDir, StorageError, read_json, write_json
from codistill.spec import Arm, JobSpec

log = logging.getLogger("codistill.driver")


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
        prepare_environment()
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
        watch = Watch(
            self.run, self.fence, spec, replicas,
            attempt_began=began, signals=self.signals, hang_after_s=self.hang_after_s, say=self.say,
        )  # fmt: skip
        reason = watch.until_all_ended()
        ended = sorted(replicas, key=lambda replica: replica.ended_at)  # so that the first failure is the reason
        return {replica.name: replica.so_far() for replica in ended}, reason


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
