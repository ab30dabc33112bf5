"""Signals that ask a run to stop, counted as a person means them: for the local runner and for the driver on Ray."""

from __future__ import annotations

import time
from collections.abc import Callable

ECHO_S = 0.5
"""Signals that come sooner after one are the same: `timeout` sends its own to its child and to the whole group."""


def noting(signals: list[int], clock: Callable[[], float] = time.monotonic) -> Callable[[int, object], None]:
    """A signal handler that adds the signal's number to `signals`, and does nothing else; `clock` tells seconds."""
    last = float("-inf")

    def note(number: int, _frame: object) -> None:
        nonlocal last
        now = clock()
        if now - last >= ECHO_S:
            signals.append(number)
        last = now

    return note
