"""How long the training thread stands still for one exchange: `python -m tests.benchmarks.stall`.

A model of 101 MB is trained by a loop of its own with `codistill.join`, on one thread of one core; a second process on
the other core does the same and is its peer. Measured is all the time that the training thread spends in the exchange
from one publication to the next, against clones of the weights made in between; beside it, what the teacher's forward
passes take in the same stretch, and what an exchange of torchft's `LocalSGD` takes, between the same two processes over
gloo. torchft is left out where it is not installed: `pip install torchft==0.2.0`.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import codistill
from codistill.exchange.transport import Connect, connect_files
from tests.benchmarks.cluster import small_cluster
from tests.benchmarks.contenders import SPAWN, two_cores, working
from tests.benchmarks.model import WIDTH, WORDS, big_model
from tests.benchmarks.report import seconds, spread, table

EXCHANGES, INTERVAL_STEPS, WARM_UP = 12, 4, 2
WORDS_SHOWN = 64
NAMESPACE = "benchmark"
CLONE = "one clone of the weights"
Taken = dict[str, list[float]]


def main() -> None:
    core, other = two_cores()
    with tempfile.TemporaryDirectory() as folder:
        rows = [[f"files: {row[0]}", *row[1:]] for row in rows_of_exchange(Path(folder) / "files", None)]
        with small_cluster(object_store_bytes=2 * 10**9) as address:
            from cluster.directory import start_directory

            directory = start_directory(NAMESPACE)
            rows += [[f"object store: {row[0]}", *row[1:]] for row in rows_of_exchange(Path(folder) / "store", address)]
            del directory
        if find_spec("torchft") is None:
            print("torchft is left out; to have it beside: pip install torchft==0.2.0", file=sys.stderr)
        else:
            rows += torchft_rows(core, other)
    size = sum(parameter.nbytes for parameter in big_model().parameters())
    title = (
        f"One exchange of {size / 1e6:.0f} MB, every {INTERVAL_STEPS} steps: what the training thread waits"
        " (aim: exchange <= 1.4 clones of the weights)"
    )
    print(table(title, ["what", "ms: median (range)", "clones"], rows), flush=True)


def rows_of_exchange(run: Path, ray_address: str | None) -> list[list[str]]:
    core, other = two_cores()
    with working(partial(peer, run, ray_address), other):
        return measured_rows(partial(exchange, run, ray_address), core)


def measured_rows(measure: Callable[[], Taken], core: int) -> list[list[str]]:
    """The rows of a measurement made in a process on this core; in clones of its own."""
    ours, theirs = SPAWN.Pipe(duplex=False)
    with working(partial(report_to, theirs, measure), core) as process:
        theirs.close()
        try:
            taken: Taken = ours.recv()
        except EOFError:
            raise SystemExit(f"the measuring process ended with {process.exitcode}") from None
    clone = statistics.median(taken[CLONE][WARM_UP:])
    return [
        [name, spread([1e3 * v for v in values[WARM_UP:]], ".1f"), f"{statistics.median(values[WARM_UP:]) / clone:.2f}"]
        for name, values in taken.items()
    ]


def report_to(pipe: Any, measure: Callable[[], Taken]) -> None:
    pipe.send(measure())


# ---------------------------------------------------------------- the training


class Training:
    """A model, an optimizer, and steps that take a while."""

    def __init__(self) -> None:
        self.model = nn.Sequential(big_model(), nn.Linear(WIDTH, 16))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)
        self.batch = (torch.arange(WORDS_SHOWN).reshape(1, -1) % WORDS,)
        self._kept: list[Tensor] = []
        self._held = [torch.empty_like(parameter).zero_() for parameter in self.model.parameters()]

    def forward_and_backward(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.model(*self.batch).square().mean().backward()

    def copy(self) -> None:
        """Into memory that is there."""
        for held, parameter in zip(self._held, self.model.parameters(), strict=True):
            held.copy_(parameter.detach())

    def clone(self) -> None:
        """The one before goes first, so that its memory may be used again."""
        self._kept.clear()
        self._kept.extend(parameter.detach().clone() for parameter in self.model.parameters())


# ---------------------------------------------------------------- ours


def joined(training: Training, run: Path, replica: int, ray_address: str | None) -> Any:
    """Through files, or through the object store of a cluster."""
    return codistill.join(
        training.model,
        run,
        replica=replica,
        replicas=2,
        burn_in_steps=0,
        interval_steps=INTERVAL_STEPS,
        connect=connect_files if ray_address is None else object_store(ray_address),
    )


def object_store(ray_address: str) -> Connect:
    import ray

    from cluster.transport import ObjectStoreTransport

    ray.init(address=ray_address, log_to_driver=False, configure_logging=False)
    return lambda scope: ObjectStoreTransport(scope.run, scope.index, namespace=NAMESPACE, keep=scope.keep)


def peer(run: Path, ray_address: str | None) -> None:
    training, step = Training(), 0
    with joined(training, run, 1, ray_address) as peers:
        while True:
            training.forward_and_backward()
            training.optimizer.step()
            peers.after_step(step)
            step += 1


@dataclass
class Stopwatch:
    """Adds up what calls take: on the clock, and on the processor by this thread alone. The helper thread shares the
    core here, so that the clock goes on while it checks a snapshot."""

    waited_s: float = 0.0
    computed_s: float = 0.0

    def time(self, call: Callable[[], Any]) -> None:
        before = time.thread_time()
        self.waited_s += seconds(call)
        self.computed_s += time.thread_time() - before


def exchange(run: Path, ray_address: str | None) -> Taken:
    """Whole intervals: all calls into the exchange, all forward passes of the teacher."""
    training = Training()
    peers = joined(training, run, 0, ray_address)
    held, own, forward = "copy into memory that is held", "exchange, processor time", "teacher's forward passes"
    taken: Taken = {CLONE: [], held: [], "exchange": [], own: [], forward: []}
    for first in range(0, EXCHANGES * INTERVAL_STEPS, INTERVAL_STEPS):
        calls, heard = Stopwatch(), 0.0
        for step in range(first, first + INTERVAL_STEPS):
            calls.time(partial(peers.before_step, step))
            heard += seconds(lambda: peers.outputs(training.batch))
            training.forward_and_backward()
            training.optimizer.step()
            calls.time(partial(peers.after_step, step))
        now = (seconds(training.clone), seconds(training.copy), calls.waited_s, calls.computed_s, heard)
        for values, value in zip(taken.values(), now, strict=True):
            values.append(value)
    return taken


# ---------------------------------------------------------------- torchft's


def torchft_rows(core: int, other: int) -> list[list[str]]:
    from torchft.coordination import LighthouseServer

    lighthouse = LighthouseServer(bind="[::]:0", min_replicas=2, join_timeout_ms=1000)
    together = SPAWN.Barrier(2)
    try:
        with working(partial(local_sgd, lighthouse.address(), 1, together), other):
            rows = measured_rows(partial(local_sgd, lighthouse.address(), 0, together), core)
    finally:
        lighthouse.shutdown()
    return [[f"torchft: {row[0]}", *row[1:]] for row in rows]


def local_sgd(lighthouse: str, replica: int, together: Any) -> Taken:
    """The optimizer's steps that average the weights, less those that do not; both processes come to them at once."""
    import torch.distributed as dist
    from torchft.local_sgd import LocalSGD
    from torchft.manager import Manager
    from torchft.process_group import ProcessGroupGloo

    training = Training()
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(),
        min_replica_size=2,
        load_state_dict=lambda state: None,
        state_dict=dict,
        replica_id=str(replica),
        store_addr="localhost",
        store_port=store.port,
        rank=0,
        world_size=1,
        lighthouse_addr=lighthouse,
        timeout=timedelta(seconds=60),
        use_async_quorum=False,
    )
    clones, averaging = [], []
    with LocalSGD(manager, training.model, training.optimizer, sync_every=INTERVAL_STEPS):
        for _ in range(EXCHANGES):
            plain: list[float] = []
            for step in range(INTERVAL_STEPS):
                training.forward_and_backward()
                last = step + 1 == INTERVAL_STEPS
                if last:
                    together.wait()
                plain.append(seconds(training.optimizer.step))
            averaging.append(plain[-1] - statistics.median(plain[:-1]))
            clones.append(seconds(training.clone))
    manager.shutdown(wait=False)
    return {CLONE: clones, "LocalSGD, averaging": averaging}


if __name__ == "__main__":
    main()
