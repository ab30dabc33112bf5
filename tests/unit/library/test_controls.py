"""Control arms: the same training with another method, bit for bit, in one process and as processes killed for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from codistill import records
from codistill.compare import compare, group_by_spec
from codistill.controls import NobodyHeard, may_follow, strength_of_teachers
from codistill.local import main
from codistill.outcome import ReplicaOutcome
from codistill.records import METRICS, Recorder
from codistill.run_dir import RunDir, read_json
from codistill.spec import JobSpec
from tests.support import fingerprint, new_run, run_in_turns, small_spec

NAMES = [f"{arm}-{index}" for arm in ("replica", "solo", "smoothing") for index in range(2)]
MEMORY = {"exchange": {"transport": {"kind": "memory"}}}


def spec_of(**change: Any) -> JobSpec:
    return small_spec(**{"controls": ["solo", "smoothing"], "data": {"kind": "disjoint"}, "seed": 3} | change)


def run_here(storage: Path, spec: JobSpec, name: str = "job") -> tuple[RunDir, int]:
    path = storage / f"{name}.json"
    path.write_text(spec.model_dump_json())
    return RunDir(storage, name), main([str(path), "--storage", str(storage), "--job", name])


def weights(run: RunDir, replica: str) -> str:
    return fingerprint(load_file(run.export(replica) / "model.safetensors"))


def alone(storage: Path, spec: JobSpec, name: str) -> RunDir:
    run = new_run(storage, spec, name)
    run_in_turns(run)
    return run


def result_of(run: RunDir, fence: int = 1) -> dict[str, Any]:
    result = read_json(run.result(fence))
    assert result is not None
    return result


def heard_off_label(run: RunDir, replica: str) -> list[float]:
    rows = records.read(run, replica, "metrics").to_pylist()
    return [row["value"] for row in rows if row["name"] == "distill/teacher_off_label"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A job of both controls, trained in this process."""
    run, code = run_here(tmp_path_factory.mktemp("controls"), spec_of(name="pair", **MEMORY))
    assert code == 0
    return run


# ---------------------------------------------------------------- what a control is


def test_solo_is_a_solo_job_of_the_same_seed_bit_for_bit(ended: RunDir, tmp_path: Path) -> None:
    other = alone(tmp_path, small_spec(method={"kind": "solo"}, data={"kind": "disjoint"}, seed=3), "solo")
    for index in range(2):
        assert weights(ended, f"solo-{index}") == weights(other, f"replica-{index}")
        assert weights(ended, f"solo-{index}") != weights(ended, f"replica-{index}")


def test_smoothing_is_a_job_of_label_smoothing_as_strong_as_the_teachers_bit_for_bit(
    ended: RunDir, tmp_path: Path
) -> None:
    for index in range(2):
        heard = heard_off_label(ended, f"replica-{index}")
        assert len(heard) == 9, "steps 4 to 12, after the burn-in of 3"
        epsilon = sum(heard) / 9
        assert 0.01 < epsilon < 0.99
        method = {"kind": "label_smoothing", "epsilon": epsilon, "weight": 1.0, "burn_in_steps": 3}
        other = alone(tmp_path, small_spec(method=method, data={"kind": "disjoint"}, seed=3), f"smoothing-{index}")
        assert weights(ended, f"smoothing-{index}") == weights(other, f"replica-{index}")
    assert heard_off_label(ended, "replica-0") != heard_off_label(ended, "replica-1")


def test_what_a_control_leaves_is_what_a_replica_leaves(ended: RunDir) -> None:
    result = result_of(ended)
    assert (result["outcome"], result["degraded"], result["reason"]) == ("succeeded", False, None)
    assert sorted(result["replicas"]) == sorted(NAMES)
    assert sorted(ended.read_heartbeats(1)) == sorted(NAMES)
    for name in NAMES:
        entry = result["replicas"][name]
        assert (entry["outcome"], entry["steps"], entry["incarnations"]) == ("succeeded", 12, 1)
        assert (entry["bytes_sent"] > 0, entry["bytes_received"] > 0) == (name.startswith("replica"),) * 2
        steps, _ = records.values(records.read(ended, name, "metrics"), "train/loss")
        assert steps == list(range(1, 13))
        assert (records.read(ended, name, "ledger").num_rows > 0) == name.startswith("replica")
        assert pq.read_table(ended.replica(1, name) / "predictions" / "test.parquet").num_rows > 0
        assert len(list(ended.checkpoints(name).iterdir())) == 3
        assert f"{name}, attempt 1" in (ended.logs(1, name) / "0000.log").read_text()


def test_compare_shows_the_arms(ended: RunDir) -> None:
    comparison = compare(group_by_spec([ended]))
    assert [row.arm for row in comparison.rows] == ["pair", "smoothing", "solo"]
    assert {score.arm: score.seed for score in comparison.scores} == dict.fromkeys(("pair", "solo", "smoothing"), 3)


# ---------------------------------------------------------------- strength


def write_strength(run: RunDir, rows: dict[int, float], *, incarnation: int = 0) -> None:
    recorder = Recorder(run.replica(1, "replica-0") / "metrics", METRICS, fence=1, incarnation=incarnation)
    for step, value in rows.items():
        recorder.add_values(step, {"distill/teacher_off_label": value, "train/loss": 9.0})
    recorder.flush()


def test_strength_is_the_mean_over_logged_steps_each_counted_once(tmp_path: Path) -> None:
    run = new_run(tmp_path, spec_of())
    write_strength(run, {4: 0.5, 8: 0.25, 12: 0.9})
    write_strength(run, {12: 0.15}, incarnation=1)  # step 12 was repeated after a restart
    assert strength_of_teachers(run, 0) == pytest.approx(0.3)
    with pytest.raises(NobodyHeard, match=r"smoothing-1 is to smooth .* replica-1 has logged no step"):
        strength_of_teachers(run, 1)


def test_where_nobody_was_heard_smoothing_fails_and_the_job_is_degraded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, code = run_here(tmp_path, spec_of(method={"burn_in_steps": 12}, **MEMORY))
    result = result_of(run)
    assert (code, result["outcome"], result["degraded"]) == (0, "succeeded", True)
    assert {name: entry["outcome"] for name, entry in result["replicas"].items()} == dict.fromkeys(
        NAMES[:4], "succeeded"
    ) | dict.fromkeys(NAMES[4:], "failed")
    assert result["reason"]["replica"] == "smoothing-0"
    assert "NobodyHeard: smoothing-0 is to smooth labels as strongly" in result["reason"]["message"]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["solo-1"]["eval/accuracy"] >= 0.0


# ---------------------------------------------------------------- when it is trained


@pytest.mark.parametrize(
    ("outcomes", "may"),
    [(("succeeded", "succeeded"), True), (("succeeded", "failed"), False), (("cancelled", "succeeded"), False)],
)
def test_controls_follow_replicas_that_all_succeeded(outcomes: tuple[str, str], may: bool) -> None:
    assert may_follow({f"replica-{index}": ReplicaOutcome(how) for index, how in enumerate(outcomes)}) is may


def wait_for(what: Callable[[], bool], timeout_s: float = 100.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def beat(run: RunDir, replica: str, fence: int = 1) -> dict[str, Any]:
    return run.read_heartbeats(fence).get(replica, {"step": -1, "incarnation": -1, "pid": -1})


@contextmanager
def runner(storage: Path, spec: JobSpec) -> Generator[subprocess.Popen[str]]:
    (storage / "spec.json").write_text(spec.model_dump_json())
    command = [sys.executable, "-P", "-m", "codistill.local", str(storage / "spec.json")]
    command += ["--storage", str(storage), "--job", "job"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_controls_as_processes_are_killed_stopped_and_gone_on_with(tmp_path: Path) -> None:
    spec = spec_of(
        training={"steps": 400, "checkpoint_interval_steps": 50, "log_interval_steps": 10},
        exchange={"interval_steps": 40, "transport": {"kind": "auto"}},
        method={"burn_in_steps": 80},
    )
    run = RunDir(tmp_path, "job")
    with runner(tmp_path, spec) as process:
        wait_for(lambda: beat(run, "solo-1")["step"] >= 60)
        os.kill(beat(run, "solo-1")["pid"], signal.SIGKILL)
        wait_for(lambda: beat(run, "solo-1")["incarnation"] == 1 and beat(run, "solo-1")["step"] > 50)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 103, output
    assert "solo-1: killed by signal SIGKILL" in output
    stopped = result_of(run)
    assert (stopped["outcome"], stopped["replicas"]["solo-1"]["outcome"]) == ("cancelled", "cancelled")
    assert stopped["replicas"]["solo-1"]["incarnations"] == 2
    assert [stopped["replicas"][name]["outcome"] for name in NAMES[4:]] == ["cancelled"] * 2, "not begun any more"
    before = {name: weights(run, name) for name in NAMES[:2]}

    assert main(["--storage", str(tmp_path), "--job", "job"]) == 0
    result = result_of(run, 2)
    assert (result["outcome"], result["degraded"]) == ("succeeded", False)
    assert sorted(result["replicas"]) == sorted(NAMES)
    for name in NAMES[:2]:  # what had ended comes back from its last checkpoint and trains no step again
        assert weights(run, name) == before[name]
        assert beat(run, name, 2)["first_step_at"] is None
        assert result["replicas"][name]["metrics"] == stopped["replicas"][name]["metrics"]
    assert beat(run, "solo-1", 2)["first_step"] == stopped["replicas"]["solo-1"]["steps"]
    for name in NAMES:
        steps, _ = records.values(records.read(run, name, "metrics"), "train/loss")
        assert steps == list(range(10, 401, 10)), "no step lost, none counted twice"
    solo = alone(tmp_path / "alone", spec.for_arm("solo"), "solo")
    for index in range(2):
        assert weights(run, f"solo-{index}") == weights(solo, f"replica-{index}")
        heard = heard_off_label(run, f"replica-{index}")
        _, epsilons = records.values(records.read(run, f"smoothing-{index}", "metrics"), "smoothing/epsilon")
        assert epsilons == pytest.approx([sum(heard) / 32] * 32)


@pytest.mark.slow
def test_no_control_follows_a_replica_that_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path, "job")
    run.export("replica-1").parent.mkdir(parents=True)
    run.export("replica-1").write_text("in the way of a directory")
    _, code = run_here(tmp_path, spec_of(limits={"max_failures": 0}))
    result = result_of(run)
    assert (code, result["outcome"], result["degraded"]) == (0, "succeeded", True)
    assert sorted(result["replicas"]) == ["replica-0", "replica-1"]
    assert "no solo, smoothing: controls follow replicas that all succeeded" in capsys.readouterr().out
