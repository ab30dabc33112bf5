"""An asynchronous run, told again from the ledger and the snapshots that were kept, ends bit for bit as it did."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from codistill import records
from codistill.exchange.mapped_file import map_safetensors, write_safetensors
from codistill.exchange.replayed import NotReplayable, heard_in
from codistill.exchange.snapshot import SnapshotId
from codistill.exchange.transport import Hub, MemoryTransport
from codistill.records import _read_directory  # pyright: ignore[reportPrivateUsage]
from codistill.replay import EXIT_DIFFERS, EXIT_REFUSED, EXIT_SAME, first_difference, main, replay
from codistill.replica import replica_turns
from codistill.run_dir import RunDir
from codistill.spec import JobSpec, replica_name
from tests.support import new_run, small_spec

STEPS = 24


class Killed(Exception):
    """Instead of a signal, since all replicas share this process."""


def unequal(storage: Path, spec: JobSpec, *, kill_before: dict[int, int], all_gone: bool = True) -> RunDir:
    """Replica i makes a turn in every (2 i + 1)-th round, in this process; those named die before a step and come back
    three rounds later to find what was announced gone, or still there. Every row of the ledger is on disk at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cast(dict[str, Any], records.Recorder.__init__.__kwdefaults__), "flush_interval_s", 0.0)
        return _unequal(storage, spec, kill_before, all_gone)


def _unequal(storage: Path, spec: JobSpec, kill_before: dict[int, int], all_gone: bool) -> RunDir:
    run, hub = new_run(storage, spec), Hub()
    pending = dict(kill_before)
    back: set[int] = set()

    def begin(index: int) -> Any:
        def before_step(step: int) -> None:
            if index in back:
                back.remove(index)
                if all_gone:
                    hub.snapshots.clear()
            if pending.get(index) == step:
                del pending[index]
                raise Killed

        return replica_turns(
            run,
            fence=1,
            index=index,
            connect=lambda scope: MemoryTransport(hub, scope.index, keep=scope.keep),
            before_step=before_step,
        )

    turns = {index: begin(index) for index in range(spec.replicas.count)}
    wait = dict.fromkeys(turns, 0)
    ended: set[int] = set()
    for tick in range(10_000):
        for index in set(turns) - ended:
            wait[index] -= 1
            if wait[index] > 0 or tick % (2 * index + 1):
                continue
            try:
                next(turns[index])
            except Killed:
                turns[index], wait[index] = begin(index), 3
                back.add(index)
            except StopIteration:
                ended.add(index)
        if len(ended) == len(turns):
            return run
    raise AssertionError("it did not end")


def asynchronous(**change: Any) -> JobSpec:
    exchange = {"mode": "async", "interval_steps": 2, "keep_snapshots": True, **change.pop("exchange", {})}
    return small_spec(exchange=exchange, training={"steps": STEPS, "evaluate_interval_steps": 10}, **change)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Three replicas, of which 0 and 1 were killed: one between two checkpoints, one before the first."""
    spec = asynchronous(replicas={"count": 3}, exchange={"precision": "bf16"})
    return unequal(tmp_path_factory.mktemp("ended"), spec, kill_before={0: 13, 1: 4})


@pytest.fixture
def copy(ended: RunDir, tmp_path: Path) -> RunDir:
    """To be changed."""
    shutil.copytree(ended.root, tmp_path / "job")
    return RunDir(tmp_path, "job")


def contents(run: RunDir) -> dict[str, str]:
    files = sorted(path for path in run.root.rglob("*") if path.is_file())
    return {str(path.relative_to(run.root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("index", [0, 1, 2])
def test_each_replica_ends_as_it_did(ended: RunDir, index: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(ended)
    assert main([str(ended.root), str(index)]) == EXIT_SAME
    assert f"replica-{index} ends bit for bit as it did" in capsys.readouterr().out
    assert contents(ended) == before, "nothing is written into the run"


def test_the_run_had_what_makes_it_hard(ended: RunDir) -> None:
    """Unequal speeds, steps made twice with other teachers, steps with nobody."""
    rows = records.read(ended, "replica-0", "ledger").to_pylist()
    assert {row["step"] for row in rows} == set(range(3, STEPS))
    assert {row["incarnation"] for row in rows} == {0, 1}
    made_twice = _read_directory(ended.replica(1, "replica-0") / "ledger", records.LEDGER).to_pylist()
    heard_once = {row["step"] for row in made_twice if row["incarnation"] == 0 and row["verdict"] == "accepted"}
    assert heard_once & {row["step"] for row in rows if row["incarnation"] == 1 and row["verdict"] == "nobody"}
    assert {row["teacher_incarnation"] for row in rows if row["teacher"] == "replica-1"} == {0, 1}
    assert max(row["offset_steps"] for row in rows if row["offset_steps"] is not None) > 6


def test_predictions_are_told_again(tmp_path: Path) -> None:
    run = unequal(tmp_path, asynchronous(exchange={"currency": {"kind": "predictions"}}), kill_before={0: 13})
    rows = records.read(run, "replica-0", "ledger").to_pylist()
    assert {row["incarnation"] for row in rows if row["verdict"] == "accepted"} == {0, 1}
    for index in range(2):
        assert replay(run, index).first_difference is None


@pytest.mark.parametrize("form", [{"form": "top_k", "top_k": 3}, {"form": "sampled"}], ids=["top_k", "sampled"])
def test_whoever_comes_back_is_not_set_back_by_predictions_it_knew(tmp_path: Path, form: dict[str, Any]) -> None:
    """Both find announced again what they had heard before, and more than is heard in one step. Epochs are shorter than
    intervals, so that older snapshots say something else of the same samples."""
    spec = asynchronous(exchange={"currency": {"kind": "predictions", **form}}, recipe={"train_size": 40})
    run = unequal(tmp_path, spec, kill_before={0: 21, 1: 18}, all_gone=False)
    assert heard_by(run, 0) == {(19, 0): [6], (20, 1): [3, 4, 6]}
    assert heard_by(run, 1) == {(14, 0): [24], (15, 1): [3, 4, 6, 8]}
    for index in range(2):
        assert replay(run, index).first_difference is None


def heard_by(run: RunDir, index: int) -> dict[tuple[int, int], list[int]]:
    """The versions in the last step before the checkpoint and the first one after it, by step and incarnation."""
    rows = _read_directory(run.replica(1, replica_name(index)) / "ledger", records.LEDGER).to_pylist()
    first = min(row["step"] for row in rows if row["incarnation"] == 1)
    steps = ((first - 1, 0), (first, 1))
    return {at: sorted(row["version"] for row in rows if (row["step"], row["incarnation"]) == at) for at in steps}


def test_a_rotating_topology_is_told_again(tmp_path: Path) -> None:
    run = unequal(
        tmp_path, asynchronous(exchange={"topology": {"kind": "rotating"}}, replicas={"count": 3}), kill_before={1: 8}
    )
    teachers = {row["teacher"] for row in records.read(run, "replica-1", "ledger").to_pylist()} - {None}
    assert len(teachers) == 2
    assert replay(run, 1).first_difference is None


def rewrite_ledger(run: RunDir, step: int, **change: Any) -> None:
    path = run.replica(1, "replica-0") / "ledger" / "all.parquet"
    rows = pq.read_table(path).to_pylist()
    at = max(i for i, row in enumerate(rows) if (row["step"], row["verdict"]) == (step, "accepted"))
    rows[at] |= change
    pq.write_table(pa.Table.from_pylist(rows, schema=records.LEDGER), path)


def test_another_word_in_the_ledger_is_another_end(copy: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    heard = heard_in(records.read(copy, "replica-0", "ledger"))
    other = next(who for ids in heard.values() for who in ids if who not in heard[20] and who.replica == 1)
    rewrite_ledger(copy, 20, teacher="replica-1", teacher_incarnation=other.incarnation, version=other.version)
    assert main([str(copy.root), "0"]) == EXIT_DIFFERS
    assert "the losses are the same up to step 20" in capsys.readouterr().out


def test_a_snapshot_that_was_changed_is_another_end(copy: RunDir) -> None:
    who = heard_in(records.read(copy, "replica-0", "ledger"))[15][0]
    path = copy.snapshots(replica_name(who.replica)) / f"{who.stem}.safetensors"
    arrays = {name: array.copy() for name, array in map_safetensors(path).items()}
    name = next(name for name in arrays if name.endswith(":bf16"))
    arrays[name].reshape(-1)[0] ^= 1 << 12
    write_safetensors(path, arrays)
    assert replay(copy, 0).first_difference is not None


def test_what_is_missing_is_named(copy: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    heard = heard_in(records.read(copy, "replica-0", "ledger"))
    first = min(step for step, ids in heard.items() if ids)
    gone = heard[first][0]
    (copy.snapshots(replica_name(gone.replica)) / f"{gone.stem}.safetensors").unlink()
    assert main([str(copy.root), "0"]) == EXIT_REFUSED
    assert f"{gone.stem}.safetensors, which taught in step {first}, is missing" in capsys.readouterr().err


def test_a_ledger_with_a_hole_is_refused(copy: RunDir) -> None:
    path = copy.replica(1, "replica-0") / "ledger" / "all.parquet"
    rows = [row for row in pq.read_table(path).to_pylist() if row["step"] != 7]
    pq.write_table(pa.Table.from_pylist(rows, schema=records.LEDGER), path)
    with pytest.raises(NotReplayable, match="the ledger says nothing about step 7"):
        replay(copy, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"exchange": {"keep_snapshots": False}}, "set exchange.keep_snapshots = true"),
        ({"replicas": {"ranks": 2}}, "only replicas.ranks = 1"),
        ({"training": {"device": "mps"}}, "only training.device = 'cpu'"),
        ({"method": {"kind": "solo"}}, "replicas of method 'solo' hear nobody"),
        ({}, "replica-0 has no export to compare with"),
    ],
)
def test_what_cannot_be_replayed_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    spec = small_spec(**{**change, "exchange": {"keep_snapshots": True, **change.get("exchange", {})}})
    with pytest.raises(NotReplayable, match=words):
        replay(new_run(tmp_path, spec), 0)


def test_what_was_refused_or_too_old_was_not_heard() -> None:
    def row(step: int, teacher: str | None, version: int | None, verdict: str) -> dict[str, Any]:
        known = {"teacher_fence": 2, "teacher_incarnation": 1} if teacher else {}
        return {"step": step, "teacher": teacher, "version": version, "verdict": verdict, **known}

    rows = [
        row(3, None, None, "nobody"),
        row(4, "replica-10", 4, "accepted"),
        row(4, "replica-2", 3, "accepted"),
        row(5, "replica-2", 4, "non_finite"),
        row(5, "replica-2", 3, "too_old"),
    ]
    heard = heard_in(pa.Table.from_pylist(rows, schema=records.LEDGER))
    assert heard == {3: [], 4: [SnapshotId(2, 2, 1, 3), SnapshotId(10, 2, 1, 4)], 5: []}


def test_the_first_difference_is_told() -> None:
    one = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    assert first_difference(one, {**one}) is None
    assert first_difference(one, {**one, "a": torch.tensor([-0.0, 1.0])}) == "a differs in 1 of 2 entries, by 0 at most"
    changed = {**one, "b": torch.tensor([[1.0, 2.5], [3.0, 6.0]])}
    assert first_difference(one, changed) == "b differs in 2 of 4 entries, by 2 at most"
    assert first_difference(one, {"a": one["a"]}) == "b is only in the export"
    assert (
        first_difference({"s": torch.tensor(3)}, {"s": torch.tensor(4)}) == "s differs in 1 of 1 entries, by 1 at most"
    )
