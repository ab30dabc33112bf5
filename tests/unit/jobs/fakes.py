"""A cluster of plain values: drivers that start, step, end and die on cue, and write what real ones write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from codistill.run_dir import RunDir, StorageError, write_json
from codistill.spec import JobSpec
from jobs.decide import Driver
from jobs.job import Job
from jobs.runner import DriverStatus, RunnerError
from jobs.status import State

NOW = 5_000.0


class Clock:
    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class FakeRunner:
    """Remembers every driver it was asked to start."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        self.drivers: dict[tuple[str, int], Driver] = {}
        self.submitted: list[tuple[str, int]] = []
        self.stopped: list[tuple[str, int]] = []
        self.down = False

    def submit(self, job_id: str, fence: int) -> None:
        self._ask()
        if (job_id, fence) not in self.drivers:
            self.drivers[job_id, fence] = Driver.ALIVE
            self.submitted.append((job_id, fence))

    def status(self, job_id: str, fence: int) -> DriverStatus:
        self._ask()
        driver = self.drivers.get((job_id, fence), Driver.ABSENT)
        return DriverStatus(driver, "it ended with exit code -9" if driver is Driver.ENDED else None)

    def stop(self, job_id: str, fence: int) -> None:
        self._ask()
        self.stopped.append((job_id, fence))
        if (job_id, fence) in self.drivers:
            self.drivers[job_id, fence] = Driver.ENDED

    def alive(self) -> list[tuple[str, int]]:
        self._ask()
        return [key for key, driver in self.drivers.items() if driver is Driver.ALIVE]

    def _ask(self) -> None:
        if self.down:
            raise RunnerError("cannot ask: the cluster does not answer")

    # ---- what drivers do by themselves

    def begin(self, job_id: str, fence: int) -> None:
        """The driver comes to life; one whose fence is not new ends at once."""
        try:
            RunDir(self.storage, job_id).start_attempt(fence, 0.0)
        except StorageError:
            self.die(job_id, fence)

    def step(self, job_id: str, fence: int, replicas: int) -> None:
        for index in range(replicas):
            write_json(RunDir(self.storage, job_id).heartbeat(fence, f"replica-{index}"), beat(index, fence))

    def finish(self, job_id: str, fence: int, outcome: str) -> None:
        write_json(RunDir(self.storage, job_id).result(fence), result(job_id, fence, outcome))
        self.drivers[job_id, fence] = Driver.ENDED

    def die(self, job_id: str, fence: int) -> None:
        self.drivers[job_id, fence] = Driver.ENDED


def beat(index: int = 0, fence: int = 1, *, step: int = 5, now: float = 1_000_000.0) -> dict[str, Any]:
    return {
        "replica": f"replica-{index}", "fence": fence, "incarnation": 0, "pid": 4242, "node": "here",
        "state": "training", "phase": "distill", "step": step, "steps": 10, "loss": 0.5, "metrics": {},
        "teachers": [
            {"teacher": "replica-1", "fence": 1, "incarnation": 0, "version": 4, "lag_steps": None, "offset_steps": 1}
        ],
        "bytes_sent": 0, "bytes_received": 0, "started_at": now, "first_step_at": now if step else None, "time": now,
    }  # fmt: skip


def result(job_id: str, fence: int, outcome: str) -> dict[str, Any]:
    failed = outcome == "failed"
    reason = {"code": "replica_failed", "message": "replica-0 failed: no luck", "replica": "replica-0"}
    return {
        "format_version": 1, "job_id": job_id, "fence": fence, "outcome": outcome, "degraded": False,
        "reason": reason if failed else None, "started_at": 0.0, "ended_at": 1.0, "replicas": {},
    }  # fmt: skip


def leave_checkpoints(run: RunDir, step: int) -> None:
    """Of both replicas, after `step` steps."""
    for index in range(2):
        place = run.checkpoints(f"replica-{index}") / f"0001-{step:012d}"
        write_json(place / "values.json", {"replica": index})
        write_json(place / "manifest.json", {"fence": 1, "step": step, "files": {"values.json": {}}})


def spec(**change: Any) -> JobSpec:
    return JobSpec.model_validate({"replicas": {"count": 2}, **change})


def job(state: State, **change: Any) -> Job:
    """A row of the store; `change` says what else it has."""
    started = state not in {State.QUEUED, State.ADMITTED}
    made = Job(
        seq=1, id="a-aaaaaa", owner="local", parent=None, priority=0, ranks=2, cpus=1.0, gpus=0.0, name="a", labels={},
        spec_json=spec().model_dump(mode="json"), state=state, reason=None,
        first_cause=None, fence=int(started), attempts=int(started), submission_id=None, created_at=0.0,
        updated_at=0.0, state_since=NOW - 0.5, started_at=NOW - 10 if started else None, ended_at=None,
        likeness=None, estimate=None,
    )  # fmt: skip
    return replace(made, **change)
