"""A real service for tests: the command in a process of its own, with a head, a store and a socket of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2

from codistill.run_dir import RunDir
from codistill.spec import JobSpec
from codistill.spec_errors import parse_spec
from jobs import head as heads
from jobs import processes
from jobs.client import Client, RemoteJob
from jobs.head import service_dir
from jobs.status import State
from tests.stores import new_store

SERVE_PROCESSES = ("ray::ServeReplica:codistill", "ray::ServeController", "ray::ProxyActor")


class Service:
    """`codistill serve` on free ports, from a home and with a store of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store_url = new_store(service_dir(home))
        self.port = heads.free_ports(1)[0]
        self.client = Client(f"http://127.0.0.1:{self.port}", timeout_s=30)
        self._http = httpx2.Client(base_url=self.client.url, timeout=30, trust_env=False)
        self.log = home.parent / "serve.log"
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-P", "-m", "jobs.cli", *words]

    @property
    def environment(self) -> dict[str, str]:
        own = {"CODISTILL_HOME": str(self.home), "CODISTILL_DATABASE": self.store_url, "CODISTILL_URL": self.client.url}
        return {**os.environ, **own}

    def start(self, *more: str) -> None:
        words = ["serve", "--port", str(self.port), "--cpus", "2", "--object-store-mb", "200", *more]
        words += ["--max-disk-percent", "100"]  # the disk is anybody's
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self.command(*words), stdout=log, stderr=log, env=self.environment)
        until("the service is ready", self._ready, 200)

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        return "serves at" in self.log.read_text().rpartition("=== again ===")[2] and self.client.ready()

    def kill(self) -> None:
        """SIGKILL to the command and to all of Serve: proxy, controller, API, manager."""
        assert self.process is not None
        for process in self.own_processes():
            if title(process.pid).startswith(SERVE_PROCESSES):
                os.kill(process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        with self.log.open("a") as log:
            log.write("=== again ===\n")

    def down(self) -> subprocess.CompletedProcess[str]:
        self._http.close()
        done = subprocess.run(
            self.command("down", "--yes"), capture_output=True, text=True, env=self.environment, check=False
        )
        if self.process is not None:
            self.process.wait(10)
        return done

    @property
    def head(self) -> heads.Head:
        head = heads.remembered(self.home)
        assert head is not None
        return head

    def own_processes(self) -> list[processes.Process]:
        return processes.belonging(processes.snapshot(self.head.head_id))

    # ---- jobs

    def run_of(self, job_id: str) -> RunDir:
        return RunDir(self.home / "runs", job_id)

    def look(self, job_id: str) -> RemoteJob:
        """As it is now: a poll may be told what was half a second ago, and some states are shorter."""
        return RemoteJob.from_json(self.poll(job_id, {"Cache-Control": "no-cache"}).json())

    def poll(self, job_id: str, headers: Mapping[str, str]) -> httpx2.Response:
        """The whole answer."""
        return self._http.get(f"/api/v1/jobs/{job_id}", headers=dict(headers)).raise_for_status()

    def wait_state(self, job_id: str, state: State, timeout_s: float = 200) -> RemoteJob:
        def reached() -> RemoteJob | None:
            job = self.look(job_id)
            assert not job.ended or job.state is state, (job.state, job.reason, self.driver_log(job_id))
            return job if job.state is state else None

        return until(f"{job_id} is {state}", reached, timeout_s)

    def wait_step(self, job_id: str, step: int, fence: int = 1) -> None:
        def reached() -> bool:
            beats = self.run_of(job_id).read_heartbeats(fence).values()
            return len(beats) == 2 and all(beat["step"] >= step for beat in beats)

        until(f"{job_id} is at step {step} of attempt {fence}", reached, 200)

    def wait_end(self, job_id: str) -> RemoteJob:
        job = self.client.wait(job_id, timeout_s=250, poll_s=0.2)
        assert job.state in {State.SUCCEEDED, State.CANCELLED}, (job.state, job.reason, self.driver_log(job_id))
        return job

    def driver_log(self, job_id: str) -> str:
        return self.client.logs(job_id, replica="driver", tail=20)[0]

    def driver_pid(self, job_id: str, fence: int) -> int:
        (pid,) = [
            process.pid
            for process in self.own_processes()
            if {"cluster.launch", job_id, str(fence)} <= set(words(process.pid)) and words(process.pid)[0] != "/bin/sh"
        ]
        return pid


def spec_of(name: str, steps: int, **more: Any) -> JobSpec:
    """Two small replicas that teach each other; together they leave room for a second job."""
    return parse_spec(
        {
            "name": name,
            "recipe": {"kind": "digits", "width": 4, "train_size": 200},
            "training": {
                "steps": steps,
                "batch_size": 16,
                "log_interval_steps": 5,
                "checkpoint_interval_steps": 50,
                "evaluate_interval_steps": steps,
            },
            "method": {"kind": "codistillation", "burn_in_steps": 20},
            "exchange": {"interval_steps": 10},
            "replicas": {"count": 2, "cpus": 0.5},
            **more,
        }
    )


def until(what: str, ask: Callable[[], Any], timeout_s: float) -> Any:
    """The first true answer. Fails after `timeout_s`."""
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up:
        if answer := ask():
            return answer
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


def words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return [""]


def title(pid: int) -> str:
    return words(pid)[0].strip()


def lives(pid: int) -> bool:
    return title(pid) != ""
