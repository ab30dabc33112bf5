"""Metrics and ledger rows as JSON."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc

from codistill.records import read
from codistill.run_dir import RunDir
from jobs.views import finite

MAX_ROWS = 20_000
"""Most that one answer carries; the rest is asked for with `after_step`."""


def read_rows(
    run: RunDir, replica: str, kind: str, *, after_step: int = -1, names: set[str] | None = None
) -> dict[str, Any]:
    """Rows of steps above `after_step`, ascending, each (step, name) once; whole steps only.

    `next_after_step` says how to go on when there are more; else it is None.
    """
    table = read(run, replica, kind)
    table = table.filter(pc.field("step") > after_step)
    if names is not None:
        table = table.filter(pc.field("name").isin(sorted(names)))
    following = None
    if table.num_rows > MAX_ROWS:
        cut = table["step"][MAX_ROWS].as_py()
        whole = table.filter(pc.field("step") < cut)
        # A single step with more rows than an answer holds is sent in one piece.
        table = whole if whole.num_rows else table.filter(pc.field("step") == cut)
        following = table["step"][table.num_rows - 1].as_py()
    return {"items": finite(table.to_pylist()), "next_after_step": following}
