"""What the exchange costs without what it brings: `python -m tests.benchmarks.exchange_tax`.

A replica that publishes its weights and takes up its peer's, but asks no teacher; at weight 0 the teacher would still
be asked, hence the forward is left out, and nothing else. Two processes of the same training differ by more than this
costs, so one process has both: for an interval the exchange takes place, for the next it stands still, helper thread
included. An interval begins half-way between two publications, so that it holds all that one of them brings about. All
on one thread of one core; the peer trains and publishes on the other core all the time.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from codistill.exchange.transport import FilesTransport
from codistill.peers import PeerTeachers
from tests.benchmarks.contenders import (
    INTERVAL_STEPS,
    PAIR,
    first_recipe,
    interleaved_for,
    new_job,
    open_replica,
    train_for_ever,
    two_cores,
    working,
)
from tests.benchmarks.report import beside_first, table
from tests.benchmarks.training import Arm

EXCHANGE: tuple[tuple[Any, str], ...] = (
    (PeerTeachers, "before_step"),
    (PeerTeachers, "after_step"),
    (FilesTransport, "poll"),
)
"""All that is called of it: by the training thread, and by the helper of its own accord."""


def main() -> None:
    (name, size), (_, other) = first_recipe(), two_cores()
    with tempfile.TemporaryDirectory() as folder:
        pair = new_job(Path(folder), "pair", size, **PAIR)
        with working(partial(train_for_ever, pair, 1, name, size), other):
            arm = open_replica(pair, 0, name, size, asks=False)
            arm.chunk(INTERVAL_STEPS // 2)
            chunks = {"exchange stands still": partial(without, arm), "exchange": partial(arm.chunk, INTERVAL_STEPS)}
            taken = interleaved_for(chunks, INTERVAL_STEPS)
    title = f"Exchange tax, {name}, batch {size}, an exchange in {INTERVAL_STEPS} steps (aim: >= 0.98)"
    head = ["training", "ms a step: median (range)", "of the steps/s without"]
    print(table(title, head, beside_first(taken)), flush=True)


def without(arm: Arm) -> float:
    """Seconds per step of an interval in which nobody publishes, asks for news or reads."""
    present = [getattr(owner, name) for owner, name in EXCHANGE]
    for owner, name in EXCHANGE:
        setattr(owner, name, lambda *_: {})
    try:
        return arm.chunk(INTERVAL_STEPS)
    finally:
        for (owner, name), call in zip(EXCHANGE, present, strict=True):
            setattr(owner, name, call)


if __name__ == "__main__":
    main()
