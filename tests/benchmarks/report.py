"""What every benchmark here shares: the machine, medians of interleaved runs, and tables."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("ray", "torch", "numpy", "pyarrow")


def machine() -> str:
    """Processor, cores, memory, load and versions in a few lines."""
    facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines())
    model = {name.strip(): value.strip() for name, value in facts.items()}.get("model name", platform.processor())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return (
        f"{model}, {cores} cores, {memory:.0f} GB, {platform.system()} {platform.release()}, load {load:.1f}\n"
        f"Python {platform.python_version()}, {versions}"
    )


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleaved(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run the contenders in turn, forwards and backwards (ABBA), so that a drift of the machine hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        order = list(contenders) if number % 2 == 0 else list(contenders)[::-1]
        for name in order:
            taken[name].append(contenders[name]())
    return taken


def beside_first(taken: Mapping[str, Sequence[float]]) -> list[list[str]]:
    """Of each contender its name, its ms, and how many times as fast as the first it was: the median over pairs of
    neighbours in time, since the machine drifts. The first round, which warms up, is left out."""
    first = next(iter(taken.values()))[1:]
    rows: list[list[str]] = []
    for name, values in taken.items():
        ratios = [base / own for base, own in zip(first, values[1:], strict=True)]
        rows.append([name, spread([1000 * value for value in values[1:]], ".1f"), spread(ratios)])
    return rows


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """The median, and the range in which all lay."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    return "\n".join(["", title, lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
