"""The driver as a process of its own: killed, asked to end, and with nobody reading what it prints."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.directory import find_directory, namespace_of
from codistill.run_dir import RunDir, read_json
from tests.ray.running import beat, create, nothing_reserved, spec_of, until

pytestmark = pytest.mark.ray

BOTH = ("replica-0", "replica-1")


@contextmanager
def driver(run: RunDir, address: str) -> Generator[subprocess.Popen[str]]:
    command = [sys.executable, "-P", "-m", "cluster.launch", "--storage", str(run.storage), "--job", run.job_id]
    command += ["--fence", "1", "--address", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def trains(run: RunDir) -> bool:
    return all(beat(run, name)["step"] > 10 for name in BOTH)


def directory_is_gone(run: RunDir) -> bool:
    try:
        find_directory(namespace_of(run.job_id, 1))
    except ValueError:
        return True
    return False


def test_nothing_is_left_of_a_driver_that_is_killed(ray_cluster: str, tmp_path: Path) -> None:
    run = create(tmp_path, spec_of(100_000))
    with driver(run, ray_cluster) as process:
        until(lambda: trains(run))
        pids = [beat(run, name)["pid"] for name in BOTH]
        process.send_signal(signal.SIGKILL)
        process.wait()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), limit_s=15)
        until(lambda: nothing_reserved() and directory_is_gone(run), limit_s=15)
    assert not run.result(1).exists(), "who is killed writes nothing"
    assert run.fences() == [1], "the next attempt must be a new one"


def test_sigterm_is_answered_with_a_checkpoint_though_nobody_reads_the_output(ray_cluster: str, tmp_path: Path) -> None:
    run = create(tmp_path, spec_of(100_000, replicas={"count": 1}, method={"kind": "solo"}))
    with driver(run, ray_cluster) as process:
        assert process.stdout is not None
        process.stdout.close()
        until(lambda: beat(run, "replica-0")["step"] > 10)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    result = read_json(run.result(1))
    assert (result["outcome"], result["reason"]) == ("cancelled", None)
    steps = result["replicas"]["replica-0"]["steps"]
    assert (run.checkpoints("replica-0") / f"0001-{steps:012d}" / "manifest.json").exists()
    assert not (run.root / "ray").exists()


@pytest.mark.slow
def test_replicas_on_two_nodes_hear_each_other(tmp_path: Path) -> None:
    """In a process of its own, since this one is attached to the shared cluster."""
    command = [sys.executable, "-m", "tests.ray.two_nodes", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    result = read_json(RunDir(tmp_path, "job").result(1))
    assert result["outcome"] == "succeeded"
    assert all(entry["bytes_received"] > 0 for entry in result["replicas"].values())
