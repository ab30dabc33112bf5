"""Optimizers of torch, without its compiler.

For its first optimizer `torch.optim` imports `torch._dynamo`, only to say what a compiler is not to look into: more
than a second of a processor and much memory, of each replica and each time it starts. Where nothing has imported it
yet, something stands in its place that takes these two messages while an optimizer is made, makes a step, or tells or
takes its state. Before and after that nothing is different: whoever compiles imports the real one, and torch tells it
anew. What is private to torch 2.13 is here; a later one that says other things gets the real one at once.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

NAME = "torch._dynamo"
TOLD = "__dynamo_disable"
"""Where torch keeps, on a function of its own, what the compiler answered about it."""
_places = threading.Lock()


@contextmanager
def compiler_absent() -> Generator[None]:
    """As a decorator: of a function that calls a torch optimizer, and compiles nothing."""
    if NAME in sys.modules:
        yield
        return
    stand_in = sys.modules[NAME] = _StandIn(NAME)
    try:
        yield
    finally:
        stand_in.leave()


class _StandIn(ModuleType):
    """Does what the compiler does while it traces nothing: nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.left_alone: list[Callable[..., Any]] = []

    def graph_break(self, msg: str = "") -> None:
        """Only what is being traced can be broken."""

    def disable(self, fn: Callable[..., Any] | None = None, *given: Any, wrapping: bool = True, **more: Any) -> Any:
        """`fn` as it is, where torch asks about its own functions; whoever else asks, in another thread, asks once."""
        if fn is None or wrapping:
            return self.real().disable(fn, *given, wrapping=wrapping, **more)
        self.left_alone.append(fn)
        return fn

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real(), name)

    def real(self) -> ModuleType:
        self.leave()
        return importlib.import_module(NAME)

    def leave(self) -> None:
        with _places:
            if sys.modules.get(NAME) is self:
                del sys.modules[NAME]
        for function in self.left_alone:
            vars(function).pop(TOLD, None)
