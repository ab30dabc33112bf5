"""What a new teacher costs its reader, in time and memory: `python -m tests.benchmarks.fetch_swap`.

Time: from an announced 100 MB snapshot to a module that computes with it, against one copy of the same bytes and
against `load_state_dict`. The fetch runs in a helper thread in training; it is counted here all the same.
Memory: what several reading processes have together, as their proportional share of what they map.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codistill.exchange.gate import Gate
from codistill.exchange.snapshot import Header, SnapshotId, header_of
from codistill.exchange.transport import Transport
from codistill.exchange.weights import hold, published
from codistill.run_dir import RunDir
from tests.benchmarks.cluster import small_cluster
from tests.benchmarks.model import WORDS, big_model, num_bytes
from tests.benchmarks.report import interleaved, seconds, spread, table

ROUNDS, READERS, NAMESPACE = 20, 3, "benchmark"


def main() -> None:
    with small_cluster(object_store_bytes=2 * 10**9), tempfile.TemporaryDirectory() as storage:
        import ray

        from cluster.directory import start_directory

        directory = start_directory(NAMESPACE)
        run = RunDir(Path(storage), "job")
        time_table(connect(run, 0), connect(run, 1))
        memory_table(run)
        ray.kill(directory)


def connect(run: RunDir, replica: int) -> Transport:
    from cluster.transport import ObjectStoreTransport

    return ObjectStoreTransport(run, replica, namespace=NAMESPACE, keep=2)


def publish(transport: Transport, version: int) -> Header:
    arrays = published(big_model())
    header = header_of(SnapshotId(0, 1, 0, version), arrays, time.time())
    transport.publish(header, arrays)
    return header


# ---------------------------------------------------------------- time


def time_table(publisher: Transport, reader: Transport) -> None:
    headers = [publish(publisher, version) for version in (1, 2)]
    reader.poll(0)
    teacher = big_model().eval().requires_grad_(False)
    loaded = big_model().eval().requires_grad_(False)
    fetched = [dict(reader.fetch(header)) for header in headers]
    states = [{name: torch.tensor(array) for name, array in arrays.items()} for arrays in fetched]
    gate = Gate(headers[0].schema)
    target = {name: np.empty_like(array) for name, array in fetched[0].items()}
    turn = 0

    def other() -> int:  # a swap to the snapshot that is held already would be no swap
        nonlocal turn
        turn += 1
        return turn % 2

    def one_copy() -> None:
        for name, array in fetched[other()].items():
            np.copyto(target[name], array)

    taken = interleaved(
        {
            "one copy": lambda: seconds(one_copy),
            "fetch": lambda: seconds(lambda: reader.fetch(headers[other()])),
            "swap": lambda: seconds(lambda: hold(teacher, fetched[other()])),
            "fetch and swap": lambda: seconds(lambda: hold(teacher, reader.fetch(headers[other()]))),
            "gate (helper thread)": lambda: seconds(lambda: gate.judge(headers[turn % 2], fetched[turn % 2])),
            "load_state_dict": lambda: seconds(lambda: loaded.load_state_dict(states[other()])),
        },
        ROUNDS,
    )
    copy = statistics.median(taken["one copy"])
    rows = [
        [name, spread([1e3 * value for value in values], ".2f"), f"{statistics.median(values) / copy:.3f}"]
        for name, values in taken.items()
    ]
    title = f"A teacher of {num_bytes(fetched[0]) / 1e6:.0f} MB in {len(fetched[0])} arrays"
    print(table(title, ["what", "ms: median (range)", "of one copy"], rows), flush=True)


# ---------------------------------------------------------------- memory


class Reader:
    """A process with one teacher."""

    def __init__(self, run: RunDir) -> None:
        self._transport = connect(run, 1)
        self._teacher = big_model().eval().requires_grad_(False)
        self._words = torch.arange(64).reshape(1, 64) % WORDS
        torch.set_num_threads(1)
        self._teacher(self._words)
        for parameter in self._teacher.parameters():  # what the module was built with is not to be counted
            parameter.data = torch.empty(0)

    def memory(self) -> dict[str, int]:
        """Bytes by kind: Pss counts a page shared by n processes as an n-th in each."""
        lines = Path(f"/proc/{os.getpid()}/smaps_rollup").read_text().splitlines()[1:]
        return {name: int(value.split()[0]) * 1024 for name, value in (line.split(":") for line in lines)}

    def take(self, header: Header, *, copied: bool) -> None:
        """Use a snapshot as it is mapped, or a private copy of it; compute once with it, so that every page counts."""
        arrays = self._transport.fetch(header)
        if copied:
            arrays = {name: np.array(array) for name, array in arrays.items()}
        for name, parameter in self._teacher.named_parameters():
            parameter.data = torch.empty(arrays[name].shape)  # `hold` checks shapes
        hold(self._teacher, arrays)
        self._teacher(self._words)
        self._sums = [float(parameter.sum()) for parameter in self._teacher.parameters()]


def memory_table(run: RunDir) -> None:
    import ray

    publisher = connect(run, 0)
    header = publish(publisher, 3)
    rows: list[list[str]] = []
    for copied in (False, True):
        actor: Any = ray.remote(Reader)
        readers = [actor.options(num_cpus=0).remote(run) for _ in range(READERS)]
        before = ray.get([reader.memory.remote() for reader in readers])
        ray.get([reader.take.remote(header, copied=copied) for reader in readers])
        after = ray.get([reader.memory.remote() for reader in readers])
        more = {kind: sum(a[kind] - b[kind] for a, b in zip(after, before, strict=True)) for kind in ("Pss", "Rss")}
        how = "private copies" if copied else "mapped teachers"
        rows.append([how, *(f"{more[kind] / 1e6:.0f}" for kind in more), f"{more['Pss'] / header.num_bytes:.2f}"])
        for reader in readers:
            ray.kill(reader)
    title = f"{READERS} readers of {header.num_bytes / 1e6:.0f} MB on one node: what they take together, MB"
    print(table(title, ["how", "Pss", "Rss", "Pss in models"], rows), flush=True)


if __name__ == "__main__":
    main()
