"""What a new job is given of the one that it goes on from: checkpoints, snapshots, and the records up to there.

It all belongs to attempt 0 of the new job, which nobody has trained: whatever the job itself writes later is newer by
its fence, and a first attempt finds it as one finds what stood when it began. Files are linked where the file system
allows it and copied otherwise, so that the parent may be deleted afterwards. The directory of the new job is built
beside its place and renamed: it is there whole, or not at all. Imports no torch.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from codistill import records
from codistill.exchange.clock import PublishRule
from codistill.run_dir import INHERITED_FENCE, RECORD_KINDS, RunDir, StorageError, read_json, write_json
from codistill.spec import JobSpec, replica_name

log = logging.getLogger(__name__)


class NothingToGoOnFrom(RuntimeError):
    """The parent has no checkpoints from which all its replicas could go on; the message says what is missing."""


@dataclass(frozen=True)
class Legacy:
    """What there is to be inherited, by replica; newest first."""

    checkpoints: Mapping[str, Sequence[Path]]
    """Committed ones, each of fewer steps than the one before."""
    snapshots: Mapping[str, Sequence[Path]] = field(default_factory=dict[str, Sequence[Path]])
    """Headers of what each had shown, each of a lower version than the one before."""

    def steps(self) -> dict[str, int]:
        """From which each replica goes on."""
        return {replica: step_of(paths[0]) for replica, paths in self.checkpoints.items()}


def step_of(path: Path) -> int:
    """Of a checkpoint, or the version of a snapshot: the last number of its name."""
    return int(path.stem.rpartition("-")[2])


def find_legacy(parent: RunDir, before: JobSpec, after: JobSpec) -> Legacy:
    """What a job of spec `after` inherits of `parent`, whose spec was `before`.

    Raises `NothingToGoOnFrom`, also when nothing would be left to train.
    """
    names = [replica_name(index, arm) for arm in after.arms for index in range(after.replicas.count)]
    begun = [fence for fence in parent.fences() if (parent.attempt(fence) / "attempt.json").exists()]
    fence = max(begun, default=INHERITED_FENCE)
    found = {name: paths for name in names if (paths := _standing(parent, fence, name))}
    if not found:
        raise NothingToGoOnFrom(f"{parent.job_id} has left no checkpoint; submit its spec again")
    same_form = (before.exchange.currency, before.exchange.precision) == (
        after.exchange.currency,
        after.exchange.precision,
    )
    snapshots = {name: _shown(parent, name) for name in found} if same_form else {}
    legacy = Legacy(found, snapshots)
    if after.exchanges and after.exchange.mode == "lockstep":
        legacy = _in_lockstep(legacy, after, parent.job_id)
    reached, total = legacy.steps(), after.total_steps
    furthest = max(reached.values())
    all_ended = all(reached.get(name, 0) >= total and parent.export(name).exists() for name in names)
    if furthest > total or all_ended:
        raise NothingToGoOnFrom(
            f"{parent.job_id} has made {furthest} steps, and there would be {total} in all: nothing is left to train;"
            " raise training.steps"
        )
    return legacy


def begin_from(parent: RunDir, child: RunDir, spec: JobSpec) -> None:
    """Make the run directory of `child`, a job of `spec`, with what it inherits; done again, it changes nothing.

    Raises `NothingToGoOnFrom`, and `StorageError` when the disk refuses or the parent cannot be read.
    """
    if child.root.exists():
        if parent_of(child) != parent.job_id:
            raise StorageError(f"{child.root} is there already, and does not go on from {parent.job_id}; remove it")
        child.create(spec)
        return
    before = parent.read_spec()
    legacy = find_legacy(parent, before, spec)
    dropped = () if before.exchange.currency == spec.exchange.currency else ("companion.peers.safetensors",)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{child.job_id}.", dir=child.storage) as beside:
            unfinished = RunDir(Path(beside), child.job_id)
            unfinished.create(spec)
            for replica, paths in legacy.checkpoints.items():
                for path in paths:
                    _take_checkpoint(path, unfinished.checkpoints(replica), dropped)
                _take_records(parent, unfinished, replica, step_of(paths[0]))
            for replica, headers in legacy.snapshots.items():
                for header in headers:
                    _take_snapshot(header, unfinished.exchange(replica))
            write_json(unfinished.root / "lineage.json", {"parent": parent.job_id, "steps": legacy.steps()})
            _sync(unfinished.root)
            unfinished.root.rename(child.root)
            _sync_directory(child.storage)
    except OSError as error:
        raise StorageError(
            f"cannot go on from {parent.root} in {child.root}: {error}; is there room and permission?"
        ) from error
    log.info("%s goes on from %s: %s", child.job_id, parent.job_id, legacy.steps())


def parent_of(run: RunDir) -> str | None:
    """The job that this one has gone on from."""
    lineage = read_json(run.root / "lineage.json")
    return None if lineage is None else str(lineage["parent"])


# ---------------------------------------------------------------- what stands


def _standing(run: RunDir, fence: int, replica: str) -> list[Path]:
    """Checkpoints that attempt `fence` might have gone on from."""
    inherited = run.inherited("checkpoints", fence)
    committed = [path.parent for path in run.checkpoints(replica).glob("[0-9]*/manifest.json")]
    readable = [path for path in committed if int(path.name.split("-")[0]) == fence or path in inherited]
    return newest_first(readable, lambda path: (path.name, step_of(path)))


def _shown(run: RunDir, replica: str) -> list[Path]:
    headers = [path for path in run.exchange(replica).glob("[0-9]*.json") if path.with_suffix(".safetensors").exists()]
    return newest_first(headers, lambda path: (path.name, step_of(path)))


def newest_first(paths: Iterable[Path], age: Callable[[Path], tuple[Any, int]]) -> list[Path]:
    """Without those that were written before a replica went back: of attempt 0, later means of more steps."""
    kept: list[Path] = []
    for path in sorted(paths, key=age, reverse=True):
        if not kept or age(path)[1] < age(kept[-1])[1]:
            kept.append(path)
    return kept


# ---------------------------------------------------------------- lockstep


def _in_lockstep(legacy: Legacy, spec: JobSpec, parent: str) -> Legacy:
    """From where every replica finds each version that it will wait for: the newest checkpoints, or else the newest
    ones of the same step."""
    names = [replica_name(index) for index in range(spec.replicas.count)]
    held = {name: [step_of(path) for path in legacy.checkpoints.get(name, ())] for name in names}
    missing = [name for name, steps in held.items() if not steps]
    if missing:
        says = f"in lockstep all replicas go on together, and {', '.join(missing)} left no checkpoint"
        raise NothingToGoOnFrom(f"{says}; submit the spec again")
    kept = {name: {step_of(path) for path in legacy.snapshots.get(name, ())} for name in names}
    common: list[int] = sorted(set.intersection(*map(set, held.values())), reverse=True)
    newest = {name: steps[0] for name, steps in held.items()}
    for begin in (newest, *(dict.fromkeys(names, step) for step in common)):
        if all_will_be_heard(begin, kept, spec):
            checkpoints = {
                name: [path for path in paths if step_of(path) <= begin.get(name, step_of(path))]
                for name, paths in legacy.checkpoints.items()
            }
            return Legacy(checkpoints, legacy.snapshots)
    raise NothingToGoOnFrom(
        f"{parent} stopped between two exchanges in lockstep (checkpoints after {held} steps), and the snapshots that"
        " replicas would wait for are gone; fork it with exchange.mode = 'async'"
    )


def all_will_be_heard(begin: Mapping[str, int], kept: Mapping[str, set[int]], spec: JobSpec) -> bool:
    """Whether replicas that go on from `begin` steps will find every version of each other that lockstep waits for:
    one that its owner has passed must be among those `kept`."""
    interval = spec.exchange.interval_steps
    rule = PublishRule(interval if spec.averages else spec.burn_in_steps, interval)
    for reader, step in begin.items():
        first = step if spec.averages else (rule.newest_due(step) or 0)
        for peer, reached in begin.items():
            passed = {version for version in range(first, reached) if rule.due(version)}
            if peer != reader and not passed <= kept.get(peer, set()):
                return False
    return True


# ---------------------------------------------------------------- files


def _take_checkpoint(path: Path, into: Path, dropped: Sequence[str]) -> None:
    place = into / f"{INHERITED_FENCE:04d}-{step_of(path):012d}"
    place.mkdir(parents=True)
    manifest = json.loads((path / "manifest.json").read_text())
    files = {name: entry for name, entry in manifest["files"].items() if name not in dropped}
    for name in files:
        _link(path / name, place / name)
    write_json(place / "manifest.json", {**manifest, "fence": INHERITED_FENCE, "files": files})


def _take_snapshot(header: Path, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    value = json.loads(header.read_text())
    value["id"] |= {"fence": INHERITED_FENCE, "incarnation": 0}
    stem = f"{INHERITED_FENCE:04d}-0000-{step_of(header):012d}"  # as `SnapshotId.stem` has it
    _link(header.with_suffix(".safetensors"), into / f"{stem}.safetensors")
    write_json(into / f"{stem}.json", value, durable=False)


def _take_records(parent: RunDir, child: RunDir, replica: str, steps: int) -> None:
    """Rows of the steps before the checkpoint, as of attempt 0."""
    for kind in RECORD_KINDS:
        table = records.read(parent, replica, kind)
        # A metric stands at the number of steps completed, a row of the ledger at the index of its step.
        last = steps if kind == "metrics" else steps - 1
        table = table.filter(pc.field("step") <= last)
        for column in ("fence", "incarnation"):
            at = table.schema.get_field_index(column)
            zeros = pa.array([INHERITED_FENCE] * table.num_rows, pa.int32())
            table = table.set_column(at, table.schema.field(at), zeros)
        directory = child.replica(INHERITED_FENCE, replica) / kind
        directory.mkdir(parents=True)
        pq.write_table(table, directory / "all.parquet", compression="zstd")


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where names cannot be shared. Neither is ever written into."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def _sync(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_dir():
            _sync_directory(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_directory(root)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
