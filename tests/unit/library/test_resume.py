"""A replica killed at any step and started again ends, in lockstep, bit for bit where it would have ended."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from codistill import records
from codistill.checkpoint import load_newest, readable_in
from codistill.exchange.transport import FilesTransport, Hub
from codistill.replay import replay
from codistill.replica import train_replica
from codistill.run_dir import RunDir, read_json
from codistill.spec import JobSpec
from tests.processes import fork_server
from tests.support import final_weights, fingerprint, new_run, run_in_turns, small_spec


def replica_process(storage: Path, index: int, kill_at: int | None) -> None:
    run = RunDir(storage, "job")
    count = run.read_spec().replicas.count

    def before_step(step: int) -> None:
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    train_replica(
        run,
        fence=1,
        index=index,
        connect=lambda scope: FilesTransport(run, scope.index, count, keep=scope.keep),
        before_step=before_step,
    )


def run_with_kills(storage: Path, spec: JobSpec, kill_at: dict[int, int]) -> RunDir:
    """Every replica as a process; those named die by SIGKILL before the step given, once, and are started again."""
    run, processes = new_run(storage, spec), fork_server()
    children: dict[int, Any] = {}
    for index in range(spec.replicas.count):
        children[index] = processes.Process(target=replica_process, args=(storage, index, kill_at.get(index)))
        children[index].start()
    while children:
        for index, child in list(children.items()):
            child.join(0.02)
            if child.exitcode == -signal.SIGKILL:
                children[index] = processes.Process(target=replica_process, args=(storage, index, None))
                children[index].start()
            elif child.exitcode is not None:
                assert child.exitcode == 0
                del children[index]
    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    run = new_run(tmp_path_factory.mktemp("undisturbed"), lockstep())
    run_in_turns(run)
    return [fingerprint(final_weights(run, index)) for index in range(2)]


def lockstep(**more: Any) -> JobSpec:
    # Checkpoints after 5 and 10 steps, versions 3, 6, 9: neither is a multiple of the other.
    return small_spec(
        exchange={"interval_steps": 3, "keep_snapshots": True}, limits={"lockstep_timeout_s": 60.0}, **more
    )


@pytest.mark.slow
@pytest.mark.parametrize("kills", [{0: 1}, {1: 8}, {0: 7, 1: 11}], ids=str)
def test_killed_and_resumed_is_never_killed(tmp_path: Path, undisturbed: list[str], kills: dict[int, int]) -> None:
    run = run_with_kills(tmp_path, lockstep(), kills)
    assert [fingerprint(final_weights(run, index)) for index in range(2)] == undisturbed
    for index in range(2):
        name = f"replica-{index}"
        ledger = records.read(run, name, "ledger").to_pylist()
        assert [row["step"] for row in ledger] == list(range(3, 12)), "every step once"
        assert {row["incarnation"] for row in ledger} <= {0, 1}
        assert ledger[-1]["incarnation"] == (1 if index in kills else 0)
        steps, _ = records.values(records.read(run, name, "metrics"), "train/loss")
        assert steps == list(range(1, 13))
    assert replay(run, max(kills)).first_difference is None


@pytest.mark.parametrize("step", range(0, 12, 2))
def test_every_step_is_a_good_place_to_stop(tmp_path: Path, undisturbed: list[str], step: int) -> None:
    """Asked to stop before a step, then gone on with as the next attempt: the same end."""
    run, hub, stop = new_run(tmp_path, lockstep()), Hub(), threading.Event()

    def stop_here(replica: int, at: int) -> None:
        if at == step:
            stop.set()

    stopped = run_in_turns(run, hub=hub, before_step=stop_here, should_stop=stop.is_set)
    assert [(entry["outcome"], entry["steps"]) for entry in stopped.values()] == [("cancelled", step)] * 2
    run.start_attempt(2, time.time())
    ended = run_in_turns(run, hub=hub, fence=2)
    assert [entry["outcome"] for entry in ended.values()] == ["succeeded"] * 2
    snapshot = sum(p.numel() * p.element_size() for p in final_weights(run, 0).values())
    # Versions 3, 6 and 9, counted over both attempts; one that was out when the stop came is sent again.
    sent = 3 + (step == 6)
    assert [entry["bytes_sent"] for entry in ended.values()] == [sent * snapshot] * 2
    assert [fingerprint(final_weights(run, index)) for index in range(2)] == undisturbed


def test_a_replica_whose_attempt_was_superseded_stops_and_leaves_no_trace(tmp_path: Path) -> None:
    run = new_run(tmp_path, lockstep())

    def supersede(replica: int, step: int) -> None:
        if step == 11 and run.fences() == [1]:
            run.start_attempt(2, time.time())

    ended = run_in_turns(run, before_step=supersede)
    assert [entry["outcome"] for entry in ended.values()] == ["cancelled"] * 2
    assert not run.export("replica-0").exists()
    loaded = load_newest(run.checkpoints("replica-0"), readable_in(run, 2, "replica-0"))
    assert loaded is not None
    assert loaded.step == 10


def test_what_a_run_was_made_with_and_where_its_metrics_are_mirrored(tmp_path: Path) -> None:
    run = run_with_kills(tmp_path, lockstep(training={"trackers": ["tensorboard"]}), {0: 8})
    environment = read_json(run.attempt(1) / "environment.json") or {}
    assert environment["seeds"]["job"] == 0
    assert set(environment["data_digests"]) == {"digits"}
    assert environment["versions"]["torch"].startswith("2.")
    for index, incarnations in enumerate((2, 1)):
        assert len(list((run.root / "tensorboard" / f"replica-{index}").iterdir())) == incarnations
