"""A process that compiles nothing, without torch's compiler.

For its first optimizer `torch.optim` imports `torch._dynamo`, only to say what a compiler is not to look into: more
than a second of a processor and 70 MB of memory, of each replica and each time it starts. `leave_out` puts something in
its place that takes those two messages. Whoever asks it for more gets the real one, which finds everything as if it had
been there from the start. What is private to torch 2.13 is here; a later one that asks for other things gets the real
one at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

NAME = "torch._dynamo"
TOLD = "__dynamo_disable"
"""Where torch keeps, on a function of its own, what the compiler answered about it."""


def leave_out() -> None:
    """Do without, in this process and until somebody compiles. For a process that is ours alone."""
    if NAME not in sys.modules:
        sys.modules[NAME] = _StandIn(NAME)


class _StandIn(ModuleType):
    """Does what the compiler does while it traces nothing: nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.left_alone: list[Callable[..., Any]] = []

    def graph_break(self, msg: str = "") -> None:
        """Only what is being traced can be broken."""

    def disable(self, fn: Callable[..., Any], recursive: bool = True, *, wrapping: bool = True, **more: Any) -> Any:
        """`fn` as it is, where torch asks for its own functions and will ask again; others ask once."""
        if wrapping:
            return _real(self).disable(fn, recursive, **more)
        self.left_alone.append(fn)
        return fn

    def __getattr__(self, name: str) -> Any:
        # Whoever looks through all modules asks for __file__ and the like; whoever imports a part, for __path__.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        return getattr(_real(self), name)


def _real(stand_in: _StandIn) -> ModuleType:
    if sys.modules.get(NAME) is stand_in:
        del sys.modules[NAME]
    real = importlib.import_module(NAME)
    for function in stand_in.left_alone:
        vars(function).pop(TOLD, None)
    return real
