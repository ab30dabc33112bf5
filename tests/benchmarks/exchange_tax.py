"""What the exchange costs without what it brings: `python -m tests.benchmarks.exchange_tax`.

A replica that publishes its weights and takes up its peer's, but asks no teacher, beside the same training alone. Both
are processes of the product on one thread of one core, helper threads included; the peer trains and publishes on the
other core all the time. At weight 0 the teacher would still be asked, hence the forward is left out, and nothing else.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from tests.benchmarks.contenders import (
    ALONE,
    INTERVAL_STEPS,
    PAIR,
    first_recipe,
    in_turns,
    new_job,
    open_replica,
    train_for_ever,
    two_cores,
    working,
)
from tests.benchmarks.report import beside_first, table


def main() -> None:
    (name, size), (core, other) = first_recipe(), two_cores()
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder)
        pair, alone = new_job(storage, "pair", size, **PAIR), new_job(storage, "alone", size, **ALONE)
        arms = {
            "alone": partial(open_replica, alone, 0, name, size),
            "exchange, nobody asked": partial(open_replica, pair, 0, name, size, asks=False),
        }
        with working(partial(train_for_ever, pair, 1, name, size), other):
            taken = in_turns(arms, steps=INTERVAL_STEPS, core=core)
    title = f"Exchange tax, {name}, batch {size}, an exchange in {INTERVAL_STEPS} steps (aim: >= 0.98)"
    print(
        table(title, ["training", "ms a step: median (range)", "of the steps/s alone"], beside_first(taken)), flush=True
    )


if __name__ == "__main__":
    main()
