"""The exchange as the ledger tells it: who taught in each step, from the snapshots that were kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from codistill.exchange.clock import PublishRule
from codistill.exchange.gate import Verdict
from codistill.exchange.mapped_file import map_safetensors
from codistill.exchange.shelf import Held
from codistill.exchange.snapshot import Arrays, Header, SnapshotId, header_of
from codistill.exchange.terms import Counters
from codistill.run_dir import RunDir
from codistill.spec import replica_name

Heard = Mapping[int, Sequence[SnapshotId]]
"""For each step that read from its peers, what taught in it, ascending by replica and age."""


class NotReplayable(ValueError):
    """What a replay needs was not kept, or has been lost. The message says what, and what would be right."""


def heard_in(ledger: pa.Table) -> Heard:
    """From a replica's ledger, of which each step has the rows of the incarnation that made it last."""
    heard: dict[int, set[SnapshotId]] = {}
    for row in ledger.to_pylist():
        ids = heard.setdefault(row["step"], set())
        if row["verdict"] == Verdict.ACCEPTED:
            replica = int(row["teacher"].removeprefix(replica_name(0)[:-1]))
            ids.add(SnapshotId(replica, row["teacher_fence"], row["teacher_incarnation"], row["version"]))
    return {step: sorted(ids) for step, ids in heard.items()}


def check_kept(run: RunDir, heard: Heard) -> int:
    """How many snapshots taught; raises `NotReplayable` when one of them is not there."""
    by_id = {snapshot: step for step in sorted(heard, reverse=True) for snapshot in heard[step]}
    for snapshot, step in sorted(by_id.items(), key=lambda entry: entry[1]):
        path = run.snapshots(replica_name(snapshot.replica)) / f"{snapshot.stem}.safetensors"
        if not path.exists():
            raise NotReplayable(f"{path}, which taught in step {step}, is missing; put it back")
    return len(by_id)


class ReplayedMailbox:
    """Shows nothing to anybody; hears what was heard."""

    def __init__(self, run: RunDir, heard: Heard, rule: PublishRule, counters: Counters) -> None:
        self._run, self._heard, self._rule = run, heard, rule
        self.counters = counters
        self._held: dict[SnapshotId, tuple[Header, Arrays]] = {}
        """What taught in the step before."""

    def await_peers(self, limit_s: float) -> None:
        pass

    def publish(self, step: int, shown: object) -> None:
        pass

    def publish_last(self, step: int, shown: object) -> None:
        pass

    def read(self, step: int) -> list[Held]:
        """Raises `NotReplayable` when the ledger says nothing about the step."""
        if self._rule.newest_due(step) is None or not self._heard:  # or one that nobody ever teaches
            return []
        if step not in self._heard:
            raise NotReplayable(f"the ledger says nothing about step {step}; rows of it have been lost")
        before = self._held
        self._held = {snapshot: before.get(snapshot) or self._open(snapshot) for snapshot in self._heard[step]}
        return [
            Held(header, arrays, None, step - snapshot.version, is_new=snapshot not in before)
            for snapshot, (header, arrays) in self._held.items()
        ]

    def close(self) -> None:
        pass

    def _open(self, snapshot: SnapshotId) -> tuple[Header, Arrays]:
        path = self._run.snapshots(replica_name(snapshot.replica)) / f"{snapshot.stem}.safetensors"
        arrays = map_safetensors(path)
        return header_of(snapshot, arrays, path.stat().st_mtime), arrays
