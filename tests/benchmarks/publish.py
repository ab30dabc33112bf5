"""What publishing costs: `python -m tests.benchmarks.publish`.

A 100 MB model is copied by the training thread, and the helper thread puts the copy into the object store (a dict of
numpy arrays); beside it what one would do first (`ray.put(model.state_dict())`), without and with Ray's zero-copy torch
tensors, which are chosen when Ray is imported, hence a process each. The limit is a memcpy of the same arrays into
shared memory.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from codistill.exchange.snapshot import Array
from codistill.exchange.weights import copied, published
from tests.benchmarks.cluster import small_cluster
from tests.benchmarks.model import big_model, num_bytes
from tests.benchmarks.report import interleaved, seconds, spread, table

FLAG = "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS"
COLD_ROUNDS, WARM_ROUNDS = 4, 20
KEEP = 2


def main() -> None:
    for flag in ("0", "1"):
        subprocess.run([sys.executable, "-m", "tests.benchmarks.publish", flag], check=True)


def child(flag: str) -> None:
    with small_cluster(object_store_bytes=2 * 10**9, environment={FLAG: flag}):
        import ray

        model = big_model()
        arrays, state = published(model), model.state_dict()
        puts: dict[str, Callable[[], Any]] = {
            "helper: ray.put(arrays)": lambda: ray.put(arrays),
            "ray.put(state_dict)": lambda: ray.put(state),
        }
        size = num_bytes(arrays)
        rows = cold_rows({"training thread: copy": lambda: copied(model), **puts}, arrays, size)
        held = copied(model)
        rows += warm_rows({"training thread: copy": lambda: copied(model, into=held), **puts}, arrays, size)
        title = f"Publishing {size / 1e6:.0f} MB in {len(arrays)} arrays, {FLAG}={flag}"
        print(table(title, ["memory", "how", "GB/s: median (range)", "of memcpy"], rows), flush=True)


def cold_rows(puts: dict[str, Callable[[], Any]], arrays: dict[str, Array], size: int) -> list[list[str]]:
    """Into pages that nobody has touched yet: everything is kept, so nothing is recycled."""
    kept: list[Any] = []

    def fresh_memcpy() -> float:
        target = SharedMemory(create=True, size=size)
        taken = seconds(lambda: copy_into(target, arrays))
        target.unlink()
        kept.append(target)
        return taken

    contenders = {name: timed_and_kept(put, kept) for name, put in puts.items()}
    return rows_of("cold", interleaved({"memcpy": fresh_memcpy, **contenders}, COLD_ROUNDS), size)


def warm_rows(puts: dict[str, Callable[[], Any]], arrays: dict[str, Array], size: int) -> list[list[str]]:
    """As in training: the last two are kept, and the memory of older ones comes back."""
    target = SharedMemory(create=True, size=size)
    copy_into(target, arrays)
    contenders = {name: timed_with_last(put) for name, put in puts.items()}
    taken = interleaved({"memcpy": lambda: seconds(lambda: copy_into(target, arrays)), **contenders}, WARM_ROUNDS)
    target.unlink()
    return rows_of("warm", {name: values[KEEP + 1 :] for name, values in taken.items()}, size)


def timed_and_kept(put: Callable[[], Any], kept: list[Any]) -> Callable[[], float]:
    return lambda: seconds(lambda: kept.append(put()))


def timed_with_last(put: Callable[[], Any]) -> Callable[[], float]:
    last: list[Any] = []

    def once() -> float:
        del last[: -KEEP + 1]  # the old one goes before the new one comes
        return seconds(lambda: last.append(put()))

    return once


def copy_into(target: SharedMemory, arrays: dict[str, Array]) -> None:
    offset = 0
    for array in arrays.values():
        np.copyto(np.frombuffer(target.buf, array.dtype, array.size, offset).reshape(array.shape), array)
        offset += array.nbytes


def rows_of(memory: str, taken: dict[str, list[float]], size: int) -> list[list[str]]:
    rates = {name: [size / 1e9 / value for value in values] for name, values in taken.items()}
    limit = statistics.median(rates["memcpy"])
    return [
        [memory, name, spread(values, ".2f"), f"{statistics.median(values) / limit:.2f}"]
        for name, values in rates.items()
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(sys.argv[1])
    else:
        main()
