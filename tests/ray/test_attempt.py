"""A whole attempt on Ray: two replicas that teach each other, and what becomes of it when something goes wrong."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
import ray
from safetensors.torch import load_file

from codistill import records
from codistill.replay import replay
from codistill.run_dir import RunDir, read_json
from tests.ray.running import INTERVAL_STEPS, beat, beside, create, ledger, nothing_reserved, spec_of, until
from tests.support import final_weights, fingerprint, new_run, run_in_turns

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

BOTH = ("replica-0", "replica-1")


def test_two_replicas_teach_each_other_through_the_object_store(tmp_path: Path) -> None:
    exchange = {"interval_steps": INTERVAL_STEPS, "keep_snapshots": True}
    run = create(tmp_path, spec_of(300, exchange=exchange))
    with beside(run) as ended:
        until(lambda: all(beat(run, name)["step"] > 0 for name in BOTH))
        processes = sorted(filter(None, map(actor_of, Path("/proc").glob("[0-9]*/cmdline"))))
        result = ended()
    assert processes == ["Directory", *["RayTrainWorker"] * 2, *["TrainController"] * 2], "no helper more than is used"
    assert (result["outcome"], result["degraded"], result["reason"]) == ("succeeded", False, None)
    assert read_json(run.result(1)) == result
    for name, peer in (BOTH, BOTH[::-1]):
        rows = [row for row in ledger(run, name) if row["verdict"] == "accepted"]
        assert {row["teacher"] for row in rows} == {peer}
        assert all(row["version"] % INTERVAL_STEPS == 0 and row["lag_steps"] >= 0 for row in rows)
        assert len({row["version"] for row in rows}) >= 3
        entry = result["replicas"][name]
        assert (entry["outcome"], entry["steps"], entry["incarnations"]) == ("succeeded", 300, 1)
        assert entry["bytes_received"] == sum(row["bytes_received"] for row in rows) > 0
        assert (run.export(name) / "model.safetensors").exists()
    assert not (run.root / "exchange").exists()
    assert not (run.root / "ray").exists()
    until(nothing_reserved, limit_s=10)
    assert replay(run, 0).first_difference is None


def actor_of(title: Path) -> str | None:
    """The class of the actor that lives in a process of this session's cluster; None for other processes."""
    try:
        shown = title.read_bytes().rstrip(b"\0").decode()
        parent = int((title.parent / "stat").read_text().rpartition(")")[2].split()[1])
        ours = ray.get_runtime_context().get_session_name().encode() in Path(f"/proc/{parent}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    found = re.fullmatch(r"ray::(?!IDLE|\w+Agent)(\w+)(\.\w+)?", shown)
    return found[1] if found and ours else None


def test_killed_or_frozen_worker_comes_back_while_its_peer_trains_on(tmp_path: Path) -> None:
    """Until a stop file ends both, with a last checkpoint each."""
    run = create(tmp_path, spec_of(100_000))
    with beside(run, hang_after_s=5.0) as ended:
        until(lambda: hears(run, "replica-0", incarnation=0) and beat(run, "replica-1")["step"] >= 60)
        before, peer = beat(run, "replica-1"), beat(run, "replica-0")
        os.kill(before["pid"], signal.SIGKILL)
        until(lambda: hears(run, "replica-0", incarnation=1))
        # Two checkpoints further: its rows of before the first are then on the disk, and not repeated after the freeze.
        until(lambda: beat(run, "replica-1")["step"] >= before["step"] + 110)
        os.kill(beat(run, "replica-1")["pid"], signal.SIGSTOP)
        until(lambda: hears(run, "replica-0", incarnation=2))
        run.request_stop(1)
        asked_at = time.monotonic()
        result = ended()
    assert time.monotonic() - asked_at < 15
    assert (result["outcome"], result["reason"]) == ("cancelled", None)
    for name in BOTH:
        entry = result["replicas"][name]
        assert entry["outcome"] == "cancelled"
        assert (run.checkpoints(name) / f"0001-{entry['steps']:012d}" / "manifest.json").exists()
    until(nothing_reserved, limit_s=10)
    assert [result["replicas"][name]["incarnations"] for name in BOTH] == [1, 3]
    last = beat(run, "replica-0")
    assert (last["pid"], last["incarnation"]) == (peer["pid"], 0), "the peer is left alone"

    rows = {row["step"]: row for row in ledger(run, "replica-0") if row["verdict"] == "accepted"}
    first, end = min(rows), max(rows)
    assert list(rows) == list(range(first, end + 1)), "from the first teacher on, no step went without"
    for incarnation in (0, 1):
        of_it = [row for row in rows.values() if row["teacher_incarnation"] == incarnation]
        held = [row for row in of_it if row["version"] == of_it[-1]["version"]]
        assert len(held) > 50, "while nothing new comes, it trains on with the teacher that it has"
        offsets = [row["offset_steps"] for row in held]
        assert offsets == list(range(offsets[0], offsets[0] + len(held))), "which grows older with every step"
        assert rows[held[-1]["step"] + 1]["teacher_incarnation"] == incarnation + 1

    resumed = records.read(run, "replica-1", "metrics").to_pylist()
    first = min(row["step"] for row in resumed if row["incarnation"] == 1)
    assert first > before["step"] - 55, "it went on from its last checkpoint, 50 steps back at most"


def hears(run: RunDir, replica: str, *, incarnation: int) -> bool:
    return any(teacher["incarnation"] == incarnation for teacher in beat(run, replica)["teachers"])


def test_replica_that_always_fails_leaves_the_other_one_a_degraded_success(tmp_path: Path) -> None:
    run = create(tmp_path, spec_of(60))
    run.export("replica-1").parent.mkdir(parents=True)
    run.export("replica-1").write_text("in the way of a directory")
    with beside(run) as ended:
        result = ended()
    assert (result["outcome"], result["degraded"]) == ("succeeded", True)
    assert result["replicas"]["replica-0"]["outcome"] == "succeeded"
    failed = result["replicas"]["replica-1"]
    assert (failed["outcome"], failed["steps"], failed["incarnations"]) == ("failed", 60, 2)
    assert "twice at step 60" in failed["error"]
    assert result["reason"]["code"] == "replica_failed"
    assert result["reason"]["replica"] == "replica-1"
    assert "Traceback" not in str(result)


def test_what_can_never_fit_is_refused_with_what_is_short(tmp_path: Path) -> None:
    run = create(tmp_path, spec_of(10, replicas={"cpus": 2.0}))
    with beside(run) as ended:
        result = ended()
    assert (result["outcome"], result["reason"]["code"]) == ("failed", "no_capacity")
    assert "needs 4 CPUs" in result["reason"]["message"]
    assert "has 2" in result["reason"]["message"]


def test_memory_transport_is_refused_with_what_would_be_right(tmp_path: Path) -> None:
    run = create(tmp_path, spec_of(10, exchange={"transport": {"kind": "memory"}}))
    with beside(run) as ended:
        result = ended()
    assert (result["outcome"], result["reason"]["code"]) == ("failed", "spec")
    assert "'object_store'" in result["reason"]["message"]


def test_replicas_of_two_ranks_lose_one_and_come_back_whole(tmp_path: Path) -> None:
    run = create(tmp_path, spec_of(400, replicas={"ranks": 2, "cpus": 0.5}))
    with beside(run) as ended:
        until(lambda: hears(run, "replica-1", incarnation=0) and beat(run, "replica-1")["step"] >= 60)
        os.kill(beat(run, "replica-1")["pid"], signal.SIGKILL)
        result = ended()
    assert result["outcome"] == "succeeded"
    entries = [result["replicas"][name] for name in BOTH]
    assert [(entry["steps"], entry["incarnations"]) for entry in entries] == [(400, 1), (400, 2)]
    driver = (run.attempt(1) / "driver.log").read_text()
    assert "its worker process died" in driver, "the cause, not what the other rank says of having lost it"
    for name in BOTH:
        rows = [row for row in ledger(run, name) if row["verdict"] == "accepted"]
        steps = [row["step"] for row in rows]
        assert steps == sorted(set(steps)), "the first rank alone keeps the ledger"
        assert steps[-1] == 399
        assert (run.export(name) / "model.safetensors").exists()


def test_controls_follow_in_the_place_of_the_replicas_and_outlive_a_kill(tmp_path: Path) -> None:
    spec = spec_of(600, controls=["solo"], exchange={"interval_steps": INTERVAL_STEPS, "mode": "lockstep"})
    run = create(tmp_path, spec)
    with beside(run) as ended:
        until(lambda: beat(run, "solo-1")["step"] >= 60)
        assert all(beat(run, name)["state"] == "ended" for name in BOTH), "two CPUs are enough for four replicas"
        os.kill(beat(run, "solo-1")["pid"], signal.SIGKILL)
        result = ended()
    assert (result["outcome"], result["degraded"], result["reason"]) == ("succeeded", False, None)
    assert set(result["replicas"]) == {*BOTH, "solo-0", "solo-1"}
    entries = {name: result["replicas"][name] for name in ("solo-0", "solo-1")}
    assert [(entry["steps"], entry["incarnations"]) for entry in entries.values()] == [(600, 1), (600, 2)]
    assert all(entry["bytes_sent"] == entry["bytes_received"] == 0 for entry in entries.values())
    alone = new_run(tmp_path / "alone", spec.for_arm("solo"))
    run_in_turns(alone)
    for index, name in enumerate(entries):
        weights = load_file(run.export(name) / "model.safetensors")
        assert fingerprint(weights) == fingerprint(final_weights(alone, index))
    until(nothing_reserved, limit_s=10)
