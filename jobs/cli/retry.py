"""Asking again when the service says when: more than a token may ask at once, or than its queue takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from jobs.cli.output import say

Result = TypeVar("Result")


class Retry:
    """Waits where it is asked to, and says why once, however often it does."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, ask: Callable[[], Result]) -> Result:
        from jobs.client import ServiceRefused

        while True:
            try:
                return ask()
            except ServiceRefused as error:
                if error.retry_after_s is None:
                    raise
                if error.code not in self._said:
                    self._said.add(error.code)
                    say(f"{error}; waiting, and going on as soon as the service lets")
                time.sleep(error.retry_after_s)
