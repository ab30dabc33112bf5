"""Processes for tests: forked, each from a fresh start, by a server that has imported torch and the library once."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext


def fork_server() -> ForkServerContext:
    """Its processes have the environment of the first test of this run that asked for one."""
    context = multiprocessing.get_context("forkserver")
    # The last is what an optimizer imports at its first step.
    context.set_forkserver_preload(["codistill.replica", "tests.support", "torch._dynamo"])
    return context
