"""A service for a browser: the real routes on a real socket, and jobs that write what real ones write, on cue."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from codistill.capacity import Node
from codistill.environment import write_environment
from codistill.outcome import ReplicaOutcome, attempt_result
from codistill.records import LEDGER, METRICS, Recorder
from codistill.run_dir import RunDir, read_json, write_json
from jobs.door import DoorRules
from jobs.head import free_ports
from jobs.routes import build_api
from jobs.routes.backend import Backend, EventTimes
from jobs.status import State
from jobs.store import Store
from tests.ended_runs import ended_run, write_rows
from tests.stores import new_store
from tests.unit.jobs.fakes import beat

PAIR: dict[str, Any] = {"name": "pair", "training": {"steps": 1000}}
FACTS = {
    "parameters": 9610,
    "bytes_received_per_exchange": 38_440,
    "memory_bytes_per_rank": {"total": 512_000},
    "unit": "samples",
    "units_per_sample": 1,
    "phases": {"train": {"steps": 1000, "flops_per_step": 2e9, "teachers_flops_per_step": 0.0}},
}


class Place:
    """Everything between the socket and the disk."""

    def __init__(self, root: Path, *, needs_token: bool = False) -> None:
        self.storage = root / "runs"
        self.storage.mkdir(parents=True)
        self.store = Store.open(new_store(root))
        times = EventTimes(poll_s=0.1, stream_s=5.0)
        rules = DoorRules(needs_token)
        backend = Backend(
            self.store, self.storage, lambda: [Node(4.0, 0.0)], rules, events=times, facts=lambda _: FACTS
        )
        self.url = f"http://127.0.0.1:{(port := free_ports(1)[0])}"
        settings = uvicorn.Config(
            build_api(backend), "127.0.0.1", port, log_level="critical", timeout_graceful_shutdown=1, ws="none"
        )
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self.store.close()

    def submit(self, token: str = "none", **change: Any) -> str:
        headers = {"Authorization": f"Bearer {token}"}
        answer = httpx2.post(f"{self.url}/api/v1/jobs", json={**PAIR, **change}, headers=headers, trust_env=False)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def move(self, job_id: str, *states: State) -> None:
        for state in states:
            job = self.store.get(job_id)
            assert job is not None
            self.store.move(job, state, **({"fence": job.fence + 1} if state is State.STARTING else {}))

    def running(self, **change: Any) -> str:
        """A job whose two replicas have begun."""
        job_id = self.submit(**change)
        self.move(job_id, State.ADMITTED, State.STARTING, State.RUNNING)
        job = self.store.get(job_id)
        assert job is not None
        run = RunDir(self.storage, job_id)
        run.create(job.spec)
        run.start_attempt(1, time.time())
        return job_id

    def reach(self, job_id: str, step: int) -> None:
        """Both replicas are at `step`."""
        run = RunDir(self.storage, job_id)
        for index in (0, 1):
            told = beat(index, step=step, now=time.time()) | {"steps": 1000, "metrics": {"eval/accuracy": 0.9}}
            write_json(run.heartbeat(1, f"replica-{index}"), told)

    def measure(self, job_id: str, steps: range, incarnation: int = 0, names: Collection[str] | None = None) -> None:
        """Metrics (all, or those of `names`) and ledger of both replicas at `steps`."""
        for index in (0, 1):
            replica = RunDir(self.storage, job_id).replica(1, f"replica-{index}")
            name = {"fence": 1, "incarnation": incarnation, "flush_interval_s": 1e9}
            metrics = Recorder(replica / "metrics", METRICS, **name)
            ledger = Recorder(replica / "ledger", LEDGER, **name)
            for step in steps:
                told = values_at(step, index)
                metrics.add_values(step, told if names is None else {name: told[name] for name in names})
                ledger.add(step, teacher=f"replica-{1 - index}", teacher_fence=1, teacher_incarnation=0,
                           version=step // 50 * 50, lag_steps=step % 50, offset_steps=step % 50,
                           bytes_received=1000 if step % 50 == 0 else 0, verdict="accepted")  # fmt: skip
            metrics.flush()
            ledger.flush()

    def refuse(self, job_id: str, step: int, verdict: str) -> None:
        """What replica-0 found of a snapshot of replica-1."""
        directory = RunDir(self.storage, job_id).replica(1, "replica-0") / "ledger"
        ledger = Recorder(directory, LEDGER, fence=1, incarnation=99 + step, flush_interval_s=1e9)
        ledger.add(step, teacher="replica-1", version=step - 5, offset_steps=5, bytes_received=0, verdict=verdict)
        ledger.flush()

    def export(self, job_id: str, name: str, content: bytes, num_bytes: int | None = None) -> None:
        """A file of replica-0's model; with `num_bytes`, as long as that."""
        directory = RunDir(self.storage, job_id).export("replica-0")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
        os.truncate(directory / name, num_bytes or len(content))
        manifest = read_json(directory / "manifest.json") or {"sha256": {}}
        manifest["sha256"][name] = hashlib.sha256(content).hexdigest()
        write_json(directory / "manifest.json", manifest)

    def tell_the_end(self, job_id: str) -> None:
        """`result.json` of a whole training: 1,000 steps of 50 ms, and 10 s of other things."""
        ended = ReplicaOutcome(
            "succeeded", steps=1000, incarnations=1, step_s=0.05, memory_bytes=500_000, hardware="Chip 1"
        )
        replicas = {"replica-0": ended, "replica-1": ended}
        run = RunDir(self.storage, job_id)
        write_json(run.result(1), attempt_result(job_id, 1, replicas, started_at=0.0, ended_at=60.0))

    def write_log(self, job_id: str, text: str, replica: str = "replica-0") -> None:
        path = RunDir(self.storage, job_id).logs(1, replica) / "0000.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(text)

    def study(self, name: str, *, seeds: Collection[int] = (1, 2, 3)) -> None:
        """Jobs of two arms, all of which have ended; of the second, two weights were tried."""
        for seed in seeds:
            for arm, choice, share in (("solo", 0, 0.6), ("pair", 0, 0.65), ("pair", 1, 0.7)):
                method = {"kind": "codistillation", "weight": 1.0 + choice} if arm == "pair" else {"kind": "solo"}
                labels = {"study": name, "arm": arm, "choice": str(choice)}
                job_id = self.submit(name=f"{name}-{arm}-{choice}-{seed}", seed=seed, labels=labels, method=method)
                job = self.store.get(job_id)
                assert job is not None
                sure = share + seed / 100
                rows = [[sure, 1 - sure], [1 - sure, sure]]
                run = ended_run(self.storage, job_id, {"replica-0": (rows, rows)}, [0, 1], seed=seed, spec=job.spec)
                metrics = Recorder(run.replica(1, "replica-0") / "metrics", METRICS, fence=1, incarnation=0)
                for step in range(100, 1001, 100):
                    metrics.add_values(step, {"eval/log_loss": 1 / (1 + step / 500) - share / 10})
                metrics.flush()
                write_environment(run, 1, job.spec, data_digests={})
                self.move(job_id, State.ADMITTED, State.STARTING, State.RUNNING, State.SUCCEEDED)

    def finish(self, job_id: str) -> None:
        """Both have ended, and differ on one of four samples."""
        run = RunDir(self.storage, job_id)
        for index, other in enumerate(([0.9, 0.1], [0.4, 0.6])):
            path = run.replica(1, f"replica-{index}") / "predictions" / "test.parquet"
            path.parent.mkdir(parents=True)
            write_rows(path, [other, [0.8, 0.2], [0.7, 0.3], [0.1, 0.9]], [0, 0, 0, 1])
        self.move(job_id, State.SUCCEEDED)


def values_at(step: int, index: int) -> Mapping[str, float]:
    """What a replica would have logged."""
    return {
        "train/task_loss": 2.0 / (1 + step / 50) + 0.1 * index,
        "train/distill_loss": 1.0 / (1 + step / 50) + 0.1 * index,
        "distill/weight": min(1.0, step / 500),
        "eval/log_loss": 0.5 + 0.01 * index,
        "eval/accuracy": 0.9,
        "exchange/bytes_sent": 20.0 * step,
        "exchange/bytes_received": 20.0 * step,
        "exchange/rejected": 2.0,
        "time/step_s": 0.01,
    }
