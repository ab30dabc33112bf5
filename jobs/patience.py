"""How long one who waits for something puts up with a service that does not answer."""

from __future__ import annotations

import time
from collections.abc import Callable

from jobs import wire
from jobs.wire import ServiceRefused, ServiceUnreachable

UNANSWERED_S = 60.0
"""Of failures one after the other: a service that is started again takes seconds."""


class Patience:
    """Of one who waits: nothing is put up with before the first answer, so that a wrong address is told at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard = False
        self._failing_since: float | None = None

    def heard(self) -> None:
        """There is a service."""
        self._heard = True

    def answered(self) -> None:
        """It has answered what it was asked."""
        self._heard = True
        self._failing_since = None

    def pause_s(self, error: ServiceRefused | ServiceUnreachable) -> float:
        """After which to ask again. Raises `error` when that is of no use, or no longer."""
        passing = self._heard and is_passing(error)
        if isinstance(error, ServiceRefused) and error.retry_after_s is not None and (passing or error.status == 429):
            self._failing_since = None
            return max(error.retry_after_s, wire.POLL_S)
        if not passing:
            raise error
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        if now - self._failing_since > UNANSWERED_S:
            raise error
        return wire.POLL_S


def is_passing(error: ServiceRefused | ServiceUnreachable) -> bool:
    """Whether the same question may be answered soon. While a service starts, what stands before it has answers of its
    own: Ray Serve's proxy says 404 to every path until it knows the routes."""
    return isinstance(error, ServiceUnreachable) or error.status >= 500 or error.code == wire.UNKNOWN
