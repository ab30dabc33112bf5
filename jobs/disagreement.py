"""How much the models of one job differ: pairs of replicas on the test set, from what they wrote down at their end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from codistill.compare.metrics import flips_matrix
from codistill.compare.predictions import NothingToCompare, Predictions, read_predictions
from codistill.run_dir import RunDir


def disagreement_of(run: RunDir, fence: int, replicas: Sequence[str]) -> dict[str, Any]:
    """Flips of every pair of `replicas` that have ended in attempt `fence`; the others are named as missing."""
    written = {name: run.replica(fence, name) / "predictions" / "test.parquet" for name in replicas}
    stamps = tuple((name, path.stat().st_mtime_ns) for name, path in written.items() if path.exists())
    # A file is written once, and may hold a million rows: the last answers are kept by its time.
    return _read(run, fence, tuple(replicas), stamps)


@lru_cache(maxsize=64)
def _read(run: RunDir, fence: int, replicas: tuple[str, ...], stamps: tuple[tuple[str, int], ...]) -> dict[str, Any]:
    found: dict[str, Predictions] = {}
    for name, _ in stamps:
        try:
            read = read_predictions(run, fence, name, "test")
        except NothingToCompare:  # e.g. a regression: it has no classes that could differ
            continue
        if all(read.same_rows(other) for other in found.values()):
            found[name] = read
    flips = flips_matrix(list(found.values())).tolist() if found else []
    return {"replicas": list(found), "flips": flips, "missing": [name for name in replicas if name not in found]}
