"""What the exchange costs without what it brings: `python -m tests.benchmarks.exchange_tax`.

A replica that publishes its weights and takes up its peer's, but asks no teacher; at weight 0 the teacher would still
be asked, hence the forward is left out, and nothing else. Two processes of the same training differ by more than this
costs, so one process has both: for an interval the exchange takes place, for the next it stands still, helper thread
included. An interval begins half-way between two publications, so that it holds all that one of them brings about. All
on one thread of one core; the peer trains and publishes on the other core all the time.
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path

from tests.benchmarks.contenders import (
    ASKING,
    EXCHANGE,
    INTERVAL_STEPS,
    PAIR,
    first_recipe,
    interleaved_for,
    new_job,
    open_replica,
    train_for_ever,
    two_cores,
    without,
    working,
)
from tests.benchmarks.report import beside_first, table


def main() -> None:
    (name, size), (_, other) = first_recipe(), two_cores()
    with tempfile.TemporaryDirectory() as folder:
        pair = new_job(Path(folder), "pair", size, **PAIR)
        peer = partial(train_for_ever, pair, 1, name, size)
        with working(peer, other), closing(open_replica(pair, 0, name, size)) as arm:
            without(ASKING, partial(arm.chunk, INTERVAL_STEPS // 2))()
            interval = without(ASKING, partial(arm.chunk, INTERVAL_STEPS))
            chunks = {"exchange stands still": without(EXCHANGE, interval), "exchange": interval}
            taken = interleaved_for(chunks, INTERVAL_STEPS)
    title = f"Exchange tax, {name}, batch {size}, an exchange in {INTERVAL_STEPS} steps (aim: >= 0.98)"
    head = ["training", "ms a step: median (range)", "of the steps/s without"]
    print(table(title, head, beside_first(taken)), flush=True)


if __name__ == "__main__":
    main()
