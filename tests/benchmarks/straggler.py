"""What a slow peer costs a fast one: `python -m tests.benchmarks.straggler`.

Two replicas teach each other in `async` mode, a core each. The peer shares its core with processes that only compute,
so that it runs at about a quarter of its speed; in between they stand still. Measured is the other one.
"""

from __future__ import annotations

import os
import signal
import struct
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from codistill.run_dir import RunDir
from tests.benchmarks.contenders import (
    INTERVAL_STEPS,
    PAIR,
    Contender,
    first_recipe,
    interleaved_for,
    new_job,
    open_replica,
    train_for_ever,
    two_cores,
    working,
)
from tests.benchmarks.report import beside_first, spread, table

BURNERS = 3


def main() -> None:
    (name, size), (core, other) = first_recipe(), two_cores()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        run = new_job(Path(folder), "pair", size, **PAIR)
        stack.enter_context(working(partial(train_for_ever, run, 1, name, size), other))
        burners = [stack.enter_context(working(burn, other)) for _ in range(BURNERS)]
        fast = Contender(partial(open_replica, run, 0, name, size), core)
        stack.callback(fast.close)
        peers_speed: dict[bool, list[float]] = {False: [], True: []}

        def chunk(slowed: bool) -> float:
            tell(burners, signal.SIGCONT if slowed else signal.SIGSTOP)
            began, then = steps_of_peer(run), time.monotonic()
            taken = fast.chunk(INTERVAL_STEPS)
            peers_speed[slowed].append((steps_of_peer(run) - began) / (time.monotonic() - then))
            return taken

        arms = {"peer at full speed": partial(chunk, False), "peer slowed down": partial(chunk, True)}
        taken = interleaved_for(arms, INTERVAL_STEPS)
    speeds = [spread(values[1:], ".1f") for values in peers_speed.values()]
    rows = [[*row, speed] for row, speed in zip(beside_first(taken), speeds, strict=True)]
    title = f"Straggler, {name}, batch {size}, async (aim: >= 0.97 with a peer at a quarter of its speed)"
    head = [
        "the other replica's",
        "ms a step: median (range)",
        "of the steps/s beside a fast peer",
        "steps/s of the peer",
    ]
    print(table(title, head, rows), flush=True)


def burn() -> None:
    """Computes without touching memory, so that it takes nothing but the core."""
    number = 1
    while True:
        number = number * 48271 % 2147483647


def tell(processes: Sequence[BaseProcess], number: signal.Signals) -> None:
    for process in processes:
        assert process.pid is not None
        os.kill(process.pid, number)


def steps_of_peer(run: RunDir) -> int:
    """What it has said last: as it polls ten times a second, that old at most."""
    (step,) = struct.unpack("<q", (run.exchange("replica-1") / "step").read_bytes())
    return int(step)


if __name__ == "__main__":
    main()
