"""A small model and its publication; a module of its own, since publishers in other processes import it."""

from __future__ import annotations

import os
import time

import numpy as np

from codistill.exchange.snapshot import Array, Header, SnapshotId, header_of
from codistill.exchange.transport import Transport
from codistill.run_dir import RunDir

KEEP = 2


def weights(value: float) -> dict[str, Array]:
    """A model of 1.6 MB (above what Ray keeps out of shared memory) with the shapes that go wrong most easily."""
    return {
        "conv": np.full((100, 4000), value, np.float32),
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
        "strided": np.arange(8, dtype=np.float32)[::2],
        "half": np.ones(3, np.float16),
    }


def publish(transport: Transport, version: int, *, replica: int = 0, fence: int = 1, incarnation: int = 0) -> Header:
    arrays = weights(version)
    header = header_of(SnapshotId(replica, fence, incarnation, version), arrays, time.time())
    transport.publish(header, arrays)
    return header


class Publisher:
    """A replica in a worker process of Ray."""

    def __init__(self, run: RunDir, namespace: str) -> None:
        from cluster.transport import ObjectStoreTransport

        self._transport = ObjectStoreTransport(run, 0, namespace=namespace, keep=KEEP)

    def publish(self, version: int) -> int:
        """Publish, and answer the process id."""
        publish(self._transport, version)
        return os.getpid()

    def close(self) -> None:
        self._transport.close()
