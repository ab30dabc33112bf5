"""A job that goes on from another ends, where nothing else was asked for, as one that was never stopped."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from codistill import inheritance, records
from codistill.checkpoint import load_newest, readable_in
from codistill.exchange.transport import connect_files
from codistill.inheritance import NothingToGoOnFrom, all_will_be_heard, begin_from, newest_first, parent_of
from codistill.lineage import Way, child_spec
from codistill.replay import NotReplayable, replay
from codistill.run_dir import RunDir, StorageError, write_json
from codistill.spec import JobSpec
from tests.support import final_weights, fingerprint, new_run, run_in_turns, small_spec

WEIGHTS: dict[str, Any] = {"exchange": {"interval_steps": 3}}
PREDICTIONS: dict[str, Any] = {
    "exchange": {"interval_steps": 3, "currency": {"kind": "predictions"}},
    "recipe": {"train_size": 64},
}
DILOCO: dict[str, Any] = {"exchange": {"interval_steps": 3}, "method": {"kind": "diloco"}}


def lockstep(**more: Any) -> JobSpec:
    # Checkpoints after 5 and 10 steps, versions 3, 6, 9: neither is a multiple of the other.
    return small_spec(**more)


def stopped(storage: Path, spec: JobSpec, at: int, name: str = "parent") -> RunDir:
    """A run whose replicas were asked to stop before step `at`."""
    run, stop = new_run(storage, spec, name), threading.Event()

    def stop_here(replica: int, step: int) -> None:
        if step == at:
            stop.set()

    run_in_turns(run, connect=connect_files, before_step=stop_here, should_stop=stop.is_set)
    return run


def gone_on(parent: RunDir, changes: dict[str, Any], way: Way = "resume", name: str = "child") -> RunDir:
    child = RunDir(parent.storage, name)
    begin_from(parent, child, child_spec(parent.read_spec(), changes, way))
    child.start_attempt(1, time.time())
    return child


def prints(run: RunDir) -> list[str]:
    return [fingerprint(final_weights(run, index)) for index in range(2)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = new_run(tmp_path_factory.mktemp("undisturbed"), lockstep(**WEIGHTS))
    run_in_turns(run, connect=connect_files)
    return run


@pytest.mark.parametrize("step", [2, 6, 7, 11])
def test_stopped_and_resumed_as_a_new_job_is_never_stopped(tmp_path: Path, undisturbed: RunDir, step: int) -> None:
    parent = stopped(tmp_path, lockstep(**WEIGHTS), step)
    child = gone_on(parent, {"name": "child", "priority": 3})
    ended = run_in_turns(child, connect=connect_files)
    assert [entry["outcome"] for entry in ended.values()] == ["succeeded"] * 2
    assert prints(child) == prints(undisturbed)
    for replica in ("replica-0", "replica-1"):
        for kind in ("metrics", "ledger"):
            rows, whole = (records.read(run, replica, kind).to_pylist() for run in (child, undisturbed))
            assert told(rows) == told(whole)
            done = step if kind == "metrics" else step - 1
            assert all((row["fence"] == 0) == (row["step"] <= done) for row in rows), "the parent's are of attempt 0"


def told(rows: list[dict[str, Any]]) -> list[str]:
    """Everything that neither clock nor attempt decides; a snapshot that was inherited is received once more."""
    keys = ("step", "name", "teacher", "version", "verdict", "lag_steps")
    learned = {"train/loss", "eval/accuracy"}
    return sorted(repr([*map(row.get, keys), row["value"] if row.get("name") in learned else None]) for row in rows)


@pytest.mark.parametrize("more", [PREDICTIONS, DILOCO], ids=["predictions", "diloco"])
def test_so_it_is_with_what_peers_have_said_and_with_means(tmp_path: Path, more: dict[str, Any]) -> None:
    whole = new_run(tmp_path, lockstep(**more), "whole")
    run_in_turns(whole, connect=connect_files)
    parent = stopped(tmp_path, lockstep(**more), 5)
    # Version 6 is of a second attempt, a number beyond that of the child's version 9.
    parent.start_attempt(2, time.time())
    stop = threading.Event()
    run_in_turns(
        parent, fence=2, connect=connect_files,
        before_step=lambda replica, step: stop.set() if step == 8 else None, should_stop=stop.is_set,
    )  # fmt: skip
    child = gone_on(parent, {})
    run_in_turns(child, connect=connect_files)
    assert prints(child) == prints(whole)


def test_a_resumed_job_can_be_resumed_and_parents_can_go(tmp_path: Path, undisturbed: RunDir) -> None:
    parent = stopped(tmp_path, lockstep(**WEIGHTS), 4)
    child = gone_on(parent, {})
    os.rename(parent.root, tmp_path / "gone")
    stop = threading.Event()
    run_in_turns(
        child, connect=connect_files,
        before_step=lambda replica, step: stop.set() if step == 8 else None, should_stop=stop.is_set,
    )  # fmt: skip
    grandchild = gone_on(child, {}, name="grandchild")
    run_in_turns(grandchild, connect=connect_files)
    assert prints(grandchild) == prints(undisturbed)
    assert (parent_of(parent), parent_of(child), parent_of(grandchild)) == (None, "parent", "child")


def test_more_steps_go_on_where_fewer_ended(tmp_path: Path) -> None:
    """With a schedule that does not look at the end; snapshots are gone after success."""
    constant = {"training": {"schedule": {"kind": "constant"}}, **WEIGHTS}
    whole = new_run(tmp_path, small_spec(**constant), "whole")
    run_in_turns(whole, connect=connect_files)
    short = new_run(tmp_path, lockstep(**{**constant, "training": {**constant["training"], "steps": 9}}), "parent")
    run_in_turns(short, connect=connect_files)
    short.clear_exchange()
    with pytest.raises(NothingToGoOnFrom, match=r"has made 9 steps, and there would be 9 in all.*raise training.steps"):
        gone_on(short, {})
    child = gone_on(short, {"training": {"steps": 12}})
    run_in_turns(child, connect=connect_files)
    assert prints(child) == prints(whole)
    assert prints(child) != prints(short)


def test_a_fork_is_another_training_from_there(tmp_path: Path, undisturbed: RunDir) -> None:
    parent = stopped(tmp_path, lockstep(**WEIGHTS), 6)
    changes: dict[str, dict[str, Any]] = {
        "same": {},
        "rate": {"training": {"optimizer": {"learning_rate": 0.1}}},
        "momentum": {"training": {"optimizer": {"momentum": 0.5}}},
        "adamw": {"training": {"optimizer": {"kind": "adamw"}}},
        "weight": {"method": {"weight": 0.5}},
        "seed": {"seed": 9},
        "currency": {"exchange": {"currency": {"kind": "predictions"}, "interval_steps": 2}},
        "async": {"exchange": {"mode": "async", "precision": "bf16", "start_together_s": 0}},
    }
    ends: dict[str, tuple[str, ...]] = {}
    for name, change in changes.items():
        child = gone_on(parent, change, "fork", name)
        results = run_in_turns(child, connect=connect_files)
        assert [entry["outcome"] for entry in results.values()] == ["succeeded"] * 2
        ends[name] = tuple(prints(child))
    assert list(ends["same"]) == prints(undisturbed)
    assert len(set(ends.values())) == len(ends)


def test_the_new_job_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = stopped(tmp_path, lockstep(**WEIGHTS), 7)
    child, links = RunDir(tmp_path, "child"), 0
    spec = child_spec(parent.read_spec(), {}, "resume")
    real = os.link

    def count(source: Path, target: Path) -> None:
        nonlocal links
        links += 1
        real(source, target)

    monkeypatch.setattr(inheritance.os, "link", count)
    begin_from(parent, child, spec)
    needed, links = links, 0
    assert needed >= 8
    for fail_at in range(needed + 1):
        left = 0

        def fail(source: Path, target: Path, fail_at: int = fail_at) -> None:
            nonlocal left
            left += 1
            if left > fail_at:
                raise FileNotFoundError(2, "gone", str(source))
            real(source, target)

        monkeypatch.setattr(inheritance.os, "link", fail)
        other = RunDir(tmp_path, f"other-{fail_at}")
        if fail_at < needed:
            with pytest.raises(StorageError, match="cannot go on from"):
                begin_from(parent, other, spec)
            assert not other.root.exists()
        else:
            begin_from(parent, other, spec)
            begin_from(parent, other, spec)  # changes nothing
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_files_are_linked_or_else_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = stopped(tmp_path, lockstep(**WEIGHTS), 7)
    learner = "checkpoints/replica-0/{}-000000000007/learner.safetensors"
    linked = gone_on(parent, {}, name="linked")
    original = parent.root / learner.format("0001")
    assert os.path.samefile(original, linked.root / learner.format("0000"))

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(inheritance.os, "link", refuse)
    copied = gone_on(parent, {}, name="copied")
    assert not os.path.samefile(original, copied.root / learner.format("0000"))
    loaded = load_newest(copied.checkpoints("replica-0"), readable_in(copied, 1, "replica-0"))
    assert loaded is not None
    assert (loaded.fence, loaded.step) == (0, 7)
    before = {path: path.read_bytes() for path in sorted(parent.root.rglob("*")) if path.is_file()}
    for child in (linked, copied):
        run_in_turns(child, connect=connect_files)
    assert before == {path: path.read_bytes() for path in sorted(parent.root.rglob("*")) if path.is_file()}


def test_a_damaged_checkpoint_makes_the_one_before_count(tmp_path: Path, undisturbed: RunDir) -> None:
    parent = stopped(tmp_path, lockstep(**WEIGHTS), 7)
    for replica in ("replica-0", "replica-1"):
        path = parent.checkpoints(replica) / "0001-000000000007" / "learner.safetensors"
        path.write_bytes(b"\0" * path.stat().st_size)
    child = gone_on(parent, {})
    run_in_turns(child, connect=connect_files)
    assert prints(child) == prints(undisturbed)


def test_of_the_records_only_what_the_checkpoint_knows_is_inherited(tmp_path: Path) -> None:
    """The parent was killed at step 9, its checkpoint is of 7 steps, and it had been through two attempts."""
    parent = new_run(tmp_path, lockstep(**WEIGHTS), "parent")
    for fence in (1, 2):
        if fence > 1:
            parent.start_attempt(fence, 0.0)
        for index in range(2):
            directory = parent.replica(fence, f"replica-{index}")
            metrics = records.Recorder(directory / "metrics", records.METRICS, fence=fence, incarnation=fence)
            ledger = records.Recorder(directory / "ledger", records.LEDGER, fence=fence, incarnation=fence)
            for step in range(4 * fence - 4, 9):
                metrics.add_values(step + 1, {"train/loss": 10.0 * fence + step})
                ledger.add(step, teacher="replica-1", teacher_fence=fence, verdict="accepted")
            metrics.flush()
            ledger.flush()
            place = parent.checkpoints(f"replica-{index}") / "0002-000000000007"
            write_json(place / "manifest.json", {"fence": 2, "step": 7, "files": {}})
    child = RunDir(tmp_path, "child")
    spec = child_spec(parent.read_spec(), {"exchange": {"mode": "async"}}, "fork")
    begin_from(parent, child, spec)
    child.start_attempt(1, 0.0)
    steps, losses = records.values(records.read(child, "replica-0", "metrics"), "train/loss")
    assert steps == list(range(1, 8))
    assert losses == [10, 11, 12, 13, 24, 25, 26]
    ledger_rows = records.read(child, "replica-1", "ledger").to_pylist()
    assert [row["step"] for row in ledger_rows] == list(range(7))
    assert [row["teacher_fence"] for row in ledger_rows] == [1, 1, 1, 1, 2, 2, 2]
    assert {(row["fence"], row["incarnation"]) for row in ledger_rows} == {(0, 0)}


def test_nothing_to_go_on_from(tmp_path: Path) -> None:
    parent = new_run(tmp_path, lockstep(**WEIGHTS), "parent")
    with pytest.raises(NothingToGoOnFrom, match="parent has left no checkpoint; submit its spec again"):
        gone_on(parent, {})
    between = stopped(
        tmp_path, lockstep(exchange={"interval_steps": 4}, training={"checkpoint_interval_steps": 7}), 6, "b"
    )
    between.clear_exchange()
    with pytest.raises(NothingToGoOnFrom, match=r"between two exchanges in lockstep.*exchange.mode = 'async'"):
        gone_on(between, {})
    assert gone_on(between, {"exchange": {"mode": "async"}}, "fork").root.exists()
    other = RunDir(tmp_path, "other")
    other.create(lockstep(**WEIGHTS))
    with pytest.raises(StorageError, match="is there already, and does not go on from b"):
        begin_from(between, other, lockstep(**WEIGHTS))


def test_a_run_that_goes_on_from_another_is_not_replayed(tmp_path: Path) -> None:
    spec = lockstep(exchange={"interval_steps": 3, "keep_snapshots": True})
    child = gone_on(stopped(tmp_path, spec, 7), {})
    with pytest.raises(NotReplayable, match="goes on from parent, and only a run from its first step"):
        replay(child, 0)


def test_what_was_written_before_a_replica_went_back_does_not_count() -> None:
    paths = [Path(name) for name in ("0001-0005", "0001-0010", "0002-0007", "0002-0012", "0003-0009")]
    found = newest_first(paths, lambda path: (path.name, int(path.name[5:])))
    assert [path.name for path in found] == ["0003-0009", "0002-0007", "0001-0005"]


@pytest.mark.parametrize(
    ("begin", "kept", "heard"),
    [
        ((6, 6), (), True),  # version 6 is published again
        ((2, 2), (), True),  # nobody is heard yet
        ((7, 7), (), False),
        ((7, 7), (6,), True),
        ((2, 5), (), False),  # version 3 is passed
        ((2, 5), (3,), True),
        ((5, 10), (3, 6, 9), True),
        ((5, 10), (6, 9), False),
        ((5, 10), (3, 9), False),
    ],
)
def test_which_versions_lockstep_will_wait_for(begin: tuple[int, int], kept: tuple[int, ...], heard: bool) -> None:
    """With burn-in 3 and interval 3: versions 3, 6, 9."""
    steps = dict(zip(("replica-0", "replica-1"), begin, strict=True))
    held = {name: set(kept) for name in steps}
    assert all_will_be_heard(steps, held, lockstep(**WEIGHTS)) is heard
