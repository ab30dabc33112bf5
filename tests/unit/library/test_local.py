"""`python -m codistill.local`: real processes, killed for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from codistill import records
from codistill.local import main
from codistill.peers import PeerTeachers
from codistill.progress import progress_line
from codistill.replay import replay
from codistill.run_dir import RunDir, read_json
from codistill.spec import Replicas
from tests.support import new_run, small_spec

SPEC = """
[recipe]
kind = "digits"
width = 8
[training]
steps = {steps}
checkpoint_interval_steps = 100
[method]
kind = "codistillation"
burn_in_steps = 50
[exchange]
interval_steps = 20
"""
STEPS = 300


def start(
    tmp_path: Path, steps: int, *, more: str = "", start_new_session: bool = False
) -> tuple[subprocess.Popen[str], RunDir]:
    (tmp_path / "spec.toml").write_text(SPEC.format(steps=steps) + more)
    command = [sys.executable, "-P", "-m", "codistill.local", str(tmp_path / "spec.toml")]
    command += ["--storage", str(tmp_path), "--job", "job"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=start_new_session
    )
    return process, RunDir(tmp_path, "job")


def wait_for(what: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def beat(run: RunDir, replica: int) -> dict[str, Any]:
    return run.read_heartbeats(1).get(f"replica-{replica}", {"step": 0, "incarnation": 0})


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def parent(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("PPid:")[2].split()[0])


def kept(run: RunDir, replica: int, incarnation: int = 0) -> int:
    """The newest version that an incarnation has published, -1 before the first."""
    names = [path.stem for path in run.snapshots(f"replica-{replica}").glob(f"0001-{incarnation:04d}-*.safetensors")]
    return max((int(name.rpartition("-")[2]) for name in names), default=-1)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
def test_a_killed_replica_comes_back_and_the_other_trains_on(tmp_path: Path) -> None:
    """And what both went through is told again, bit for bit, from the ledger and the snapshots."""
    steps = 700  # so that the first replica has heard the second before that is killed, which a heartbeat tells late
    process, run = start(tmp_path, steps, more="keep_snapshots = true\n")
    wait_for(lambda: kept(run, 1) >= 60 and bool(beat(run, 0).get("teachers")))
    survivor, alone_from = beat(run, 0)["pid"], kept(run, 0)
    os.kill(beat(run, 1)["pid"], signal.SIGKILL)
    wait_for(lambda: kept(run, 0) >= alone_from + 40)
    with frozen(survivor):  # it could train to the end while its peer waits to be started again
        assert kept(run, 0) < steps - 100, "too fast for its peer to come back in time"
        wait_for(lambda: kept(run, 1, incarnation=1) >= 0)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert "replica-1: killed by signal SIGKILL" in output
    result = read_json(run.result(1))
    assert result is not None
    assert (result["outcome"], result["degraded"], result["reason"]) == ("succeeded", False, None)
    assert [entry["incarnations"] for entry in result["replicas"].values()] == [1, 2]
    assert beat(run, 0)["pid"] == survivor

    ledger = records.read(run, "replica-0", "ledger").to_pylist()
    assert [row["step"] for row in ledger] == list(range(50, steps)), "one teacher or none: one row a step"
    versions = [(row["teacher_incarnation"], row["version"]) for row in ledger if row["verdict"] == "accepted"]
    assert versions == sorted(versions)
    assert {incarnation for incarnation, _ in versions} == {0, 1}
    logged, _ = records.values(records.read(run, "replica-1", "metrics"), "train/loss")
    assert logged == list(range(10, steps + 1, 10)), "no step lost, none counted twice"
    for index in range(2):
        assert replay(run, index).first_difference is None


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_the_job_goes_on_from_it(tmp_path: Path) -> None:
    process, run = start(tmp_path, steps=500)
    wait_for(lambda: beat(run, 0)["step"] > 130)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 103, output
    stopped_at = beat(run, 0)["step"]
    assert stopped_at < 500
    newest = sorted(path.name for path in run.checkpoints("replica-0").iterdir())[-1]
    assert newest == f"0001-{stopped_at:012d}"
    assert main(["--storage", str(tmp_path), "--job", "job"]) == 0
    result = read_json(run.result(2))
    assert result is not None
    assert result["outcome"] == "succeeded"
    steps, _ = records.values(records.read(run, "replica-0", "metrics"), "train/loss")
    assert sorted(set(steps)) == sorted(steps)
    assert set(range(10, 501, 10)) <= set(steps)


@pytest.mark.slow
def test_when_the_runner_is_killed_its_replicas_end(tmp_path: Path) -> None:
    process, run = start(tmp_path, steps=100_000)
    wait_for(lambda: beat(run, 0)["step"] > 10 and beat(run, 1)["step"] > 10)
    pids = [beat(run, index)["pid"] for index in range(2)]
    process.kill()
    process.communicate()
    wait_for(lambda: not any(alive(pid) for pid in pids), timeout_s=15)


@pytest.mark.slow
def test_a_lost_fork_server_costs_a_restart(tmp_path: Path) -> None:
    """Its forks live on when it dies, and nobody can tell any more how they end."""
    process, run = start(tmp_path, steps=STEPS)
    wait_for(lambda: min(beat(run, 0)["step"], beat(run, 1)["step"]) > 10)
    pids = [beat(run, index)["pid"] for index in range(2)]
    servers = {parent(pid) for pid in pids}
    assert len(servers) == 1
    with frozen(pids[0]), frozen(pids[1]):
        os.kill(servers.pop(), signal.SIGKILL)
        wait_for(lambda: not any(alive(pid) for pid in pids))
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert "replica-0: lost: the process that it was forked from has ended" in output
    assert [beat(run, index)["incarnation"] for index in range(2)] == [1, 1]


@pytest.mark.slow
def test_a_signal_to_the_whole_group_leaves_checkpoints(tmp_path: Path) -> None:
    """As `timeout` sends it, and whoever stops a shell's job."""
    process, run = start(tmp_path, steps=100_000, start_new_session=True)
    wait_for(lambda: min(beat(run, 0)["step"], beat(run, 1)["step"]) > 10)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 103, output
    for index in range(2):
        newest = max(path.name for path in run.checkpoints(f"replica-{index}").iterdir())
        assert newest == f"0001-{beat(run, index)['step']:012d}"
        assert beat(run, index)["incarnation"] == 0


@pytest.mark.slow
def test_replicas_have_the_environment_of_their_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is now, not as it was when the process began that they are forked from."""
    spec = small_spec(method={"kind": "solo"}).model_copy(update={"replicas": Replicas(count=1)})
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    for setting in ("first", "second"):
        monkeypatch.setenv("GLOO_TEST_SETTING", setting)
        assert main([str(tmp_path / "spec.json"), "--storage", str(tmp_path), "--job", setting]) == 0
        written = read_json(RunDir(tmp_path, setting).attempt(1) / "environment.json")
        assert written is not None
        assert written["variables"]["GLOO_TEST_SETTING"] == setting


@pytest.mark.slow
def test_training_that_diverges_fails_with_its_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tried again once, since the first time might have been bad luck; not a third time at the same step."""
    growing = {"kind": "sgd", "learning_rate": 100.0, "weight_decay": 10.0}  # weights times -999 at each step
    spec = small_spec(training={"steps": 100, "optimizer": growing}, method={"kind": "solo"})
    (tmp_path / "spec.json").write_text(spec.model_copy(update={"replicas": Replicas(count=1)}).model_dump_json())
    assert main([str(tmp_path / "spec.json"), "--storage", str(tmp_path), "--job", "job"]) == 100
    result = read_json(RunDir(tmp_path, "job").result(1))
    assert result is not None
    assert result["reason"]["code"] == "replica_failed"
    assert "replica-0 failed: TrainingDiverged: the weights after step 5" in result["reason"]["message"]
    assert result["replicas"]["replica-0"]["incarnations"] == 2
    assert "Traceback" not in capsys.readouterr().out


def test_memory_transport_takes_turns_in_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "spec.json").write_text(small_spec(exchange={"transport": {"kind": "memory"}}).model_dump_json())
    assert main([str(tmp_path / "spec.json"), "--storage", str(tmp_path), "--job", "job"]) == 0
    result = read_json(RunDir(tmp_path, "job").result(1))
    assert result is not None
    assert result["replicas"]["replica-1"]["steps"] == 12
    assert "hears replica-0 v10" in capsys.readouterr().out


def test_in_one_process_the_error_of_one_ends_the_attempt_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = PeerTeachers.report

    def fail(self: PeerTeachers) -> Any:
        if self.steps_done == 6:
            raise RuntimeError("out of luck")
        return report(self)

    monkeypatch.setattr(PeerTeachers, "report", fail)
    (tmp_path / "spec.json").write_text(small_spec(exchange={"transport": {"kind": "memory"}}).model_dump_json())
    assert main([str(tmp_path / "spec.json"), "--storage", str(tmp_path), "--job", "job"]) == 100
    result = read_json(RunDir(tmp_path, "job").result(1)) or {}
    assert (result["outcome"], result["reason"]["code"]) == ("failed", "replica_failed")
    assert result["reason"]["message"] == "replica-0 failed: RuntimeError: out of luck"
    assert [(entry["outcome"], entry["steps"]) for entry in result["replicas"].values()] == [
        ("failed", 6),
        ("cancelled", 5),
    ]
    assert "Traceback" in capsys.readouterr().err


def test_in_one_process_too_a_job_ends_in_time(tmp_path: Path) -> None:
    late = {"exchange": {"transport": {"kind": "memory"}}, "limits": {"max_runtime_s": 1e-9}, "controls": ["solo"]}
    (tmp_path / "spec.json").write_text(small_spec(**late).model_dump_json())
    assert main([str(tmp_path / "spec.json"), "--storage", str(tmp_path), "--job", "job"]) == 100
    run = RunDir(tmp_path, "job")
    result = read_json(run.result(1)) or {}
    assert (result["outcome"], result["reason"]["code"]) == ("failed", "max_runtime")
    assert {name: entry["outcome"] for name, entry in result["replicas"].items()} == {
        "replica-0": "cancelled",
        "replica-1": "cancelled",
    }
    assert len(list(run.root.glob("checkpoints/*/*/manifest.json"))) == 2


@pytest.mark.parametrize(
    ("spec", "job", "storage", "code", "sentence"),
    [
        ("[training]\nstep = 3\n", "job", "", 2, "training.step: unknown key; did you mean 'steps'?"),
        ("[exchange.transport]\nkind = 'object_store'\n", "job", "", 2, "'object_store' is Ray's; use kind = 'auto'"),
        ("", "no/job", "", 2, "'no/job' is not an id"),
        ("", "job", "missing", 3, "does not exist; create it, or name another directory"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: str, job: str, storage: str, code: int, sentence: str
) -> None:
    (tmp_path / "spec.toml").write_text(spec)
    assert main([str(tmp_path / "spec.toml"), "--storage", str(tmp_path / storage), "--job", job]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("codistill: ")
    assert captured.err.count("\n") == 1
    assert sentence in captured.err


def test_a_second_job_of_another_spec_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new_run(tmp_path, small_spec())
    (tmp_path / "spec.toml").write_text("seed = 5\n")
    assert main([str(tmp_path / "spec.toml"), "--storage", str(tmp_path), "--job", "job"]) == 3
    assert "already holds a job with another spec" in capsys.readouterr().err


def test_a_progress_line_says_who_teaches_and_who_is_silent() -> None:
    teacher = {"teacher": "replica-1", "version": 100, "lag_steps": 12, "offset_steps": 20}
    line = progress_line(
        {
            "replica": "replica-0", "step": 120, "steps": 600, "incarnation": 2, "loss": 0.4123, "state": "training",
            "metrics": {"eval/accuracy": 0.953}, "teachers": [teacher], "time": 0.0,
        },
        now=30.0,
    )  # fmt: skip
    assert line == (
        "replica-0  step 120/600  incarnation 2  loss 0.412  accuracy 0.953"
        "  hears replica-1 v100 (lag 12, offset 20)  silent for 30 s"
    )
