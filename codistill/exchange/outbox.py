"""What a replica shows of itself: copied by the training thread, checked and published by the helper."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np

from codistill.exchange.gate import Gate, Verdict
from codistill.exchange.mapped_file import write_safetensors
from codistill.exchange.snapshot import Arrays, SnapshotId, norm_of
from codistill.exchange.terms import Counters, SnapshotRefused
from codistill.exchange.transport import Transport
from codistill.run_dir import StorageError

log = logging.getLogger(__name__)


class Outbox:
    """At most `size` snapshots wait in it: a newer one takes the place of the oldest that was not published in time.

    With `must_show` (lockstep) one that the gate refuses is an error, since peers wait for it. With `keep_in` what is
    published is also kept there.
    """

    def __init__(
        self,
        transport: Transport,
        gate: Gate,
        me: SnapshotId,
        counters: Counters,
        *,
        must_show: bool,
        size: int = 1,
        keep_in: Path | None = None,
    ) -> None:
        self._transport, self._gate, self._me, self._counters = transport, gate, me, counters
        self._must_show, self._keep_in = must_show, keep_in
        self._size = size
        self._waiting: deque[tuple[SnapshotId, Arrays]] = deque()
        self._done_with: Arrays | None = None
        self._lock = threading.Lock()

    def make_room(self) -> Arrays | None:
        """For one more, which the training thread is about to copy: what nobody reads any more, if there is such."""
        with self._lock:
            if len(self._waiting) == self._size:
                self._counters.skipped += 1
                return self._waiting.popleft()[1]
            room, self._done_with = self._done_with, None
            return room

    def put(self, version: int, arrays: Arrays) -> None:
        """Let it wait; `arrays` belong to this outbox from now on."""
        with self._lock:
            self._waiting.append((replace(self._me, version=version), arrays))

    def publish(self) -> None:
        """Show the peers what waits, if the gate lets it pass. Raises `SnapshotRefused` where it must be shown."""
        while True:
            with self._lock:
                if not self._waiting:
                    return
                snapshot, arrays = self._waiting.popleft()
            self._publish(snapshot, arrays)
            with self._lock:
                self._done_with = arrays

    def _publish(self, snapshot: SnapshotId, arrays: Arrays) -> None:
        header = self._gate.describe(snapshot, arrays, time.time())
        before = self._gate.quarantined
        verdict = self._gate.judge(header, arrays)
        self._counters.note_quarantine(before, self._gate.quarantined)
        if verdict is Verdict.ACCEPTED:
            if self._keep_in is not None:  # first, so that nobody learns from what is not there to be replayed
                _keep(self._keep_in, snapshot, arrays)
            self._transport.publish(header, arrays)
            self._counters.bytes_sent += header.num_bytes
            return
        self._counters.rejected += 1
        why = f"{verdict}{_culprit(arrays) if verdict is Verdict.NON_FINITE else ''}"
        log.warning("version %d of this replica is not published: %s", snapshot.version, why)
        if self._must_show:
            raise SnapshotRefused(
                f"version {snapshot.version} of this replica may not be published ({why}), and in lockstep its"
                " peers wait for it; its weights have probably diverged: lower the learning rate or the weight"
            )


def _keep(directory: Path, snapshot: SnapshotId, arrays: Arrays) -> None:
    path = directory / f"{snapshot.stem}.safetensors"
    temporary = directory / f".{path.name}.tmp"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_safetensors(temporary, arrays)
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"cannot keep {path}: {error}; make room, or set exchange.keep_snapshots = false") from error


def _culprit(arrays: Arrays) -> str:
    """Which array is not finite, and what to do where the precision may be why."""
    name = next((name for name, array in arrays.items() if not math.isfinite(norm_of({name: array}))), None)
    if name is None:
        return ""
    if arrays[name].dtype == np.float16 and np.isinf(arrays[name]).any():
        return f": '{name}' has entries beyond 65504, which fp16 does not hold; set exchange.precision to 'bf16'"
    return f": '{name}'"
