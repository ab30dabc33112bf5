"""Metrics and ledger rows as JSON."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from codistill.records import read
from codistill.run_dir import RunDir
from jobs.thinning import thin_table
from jobs.views import finite

MAX_ROWS = 20_000
"""Most that one answer carries; the rest is asked for with `after_step`."""
SERIES = {"metrics": (("name",), "value"), "ledger": (("teacher", "verdict"), "offset_steps")}
"""Of each kind, what tells its series apart, and what is drawn of them."""


def read_rows(
    run: RunDir,
    replica: str,
    kind: str,
    *,
    after_step: int = -1,
    names: set[str] | None = None,
    max_points: int | None = None,
) -> dict[str, Any]:
    """Rows of steps above `after_step`, ascending, each (step, name) once; whole steps only.

    `next_after_step` says how to go on when there are more; else it is None. With `max_points`, at most so many of
    each series (see `thinning`); `thinned` then says how many rows there were and how many are left, and is None where
    none was left out. Of the ledger, `totals` tells how often each teacher was heard over all steps.
    """
    table = read(run, replica, kind)
    totals = _totals(table) if kind == "ledger" else None
    table = table.filter(pc.field("step") > after_step)
    if names is not None:
        table = table.filter(pc.field("name").isin(sorted(names)))
    whole, thinned = table.num_rows, None
    if max_points is not None:
        table = thin_table(table, *SERIES[kind], max_points)
        if table.num_rows < whole:
            thinned = {"rows": whole, "kept": table.num_rows}
    table, following = _first_page(table)
    answer = {"items": finite(table.to_pylist()), "next_after_step": following, "thinned": thinned}
    return answer if totals is None else answer | {"totals": totals}


def _first_page(table: pa.Table) -> tuple[pa.Table, int | None]:
    """As many whole steps as one answer holds, and the last of them if there are more."""
    if table.num_rows <= MAX_ROWS:
        return table, None
    cut = table["step"][MAX_ROWS].as_py()
    page = table.filter(pc.field("step") < cut)
    # A single step with more rows than an answer holds is sent in one piece.
    page = page if page.num_rows else table.filter(pc.field("step") == cut)
    return page, page["step"][page.num_rows - 1].as_py()


def _totals(table: pa.Table) -> list[dict[str, Any]]:
    """Of each teacher and verdict: rows, and bytes received."""
    sums = table.group_by(["teacher", "verdict"]).aggregate([("step", "count"), ("bytes_received", "sum")])
    return [
        {
            "teacher": row["teacher"],
            "verdict": row["verdict"],
            "rows": row["step_count"],
            "bytes_received": row["bytes_received_sum"] or 0,
        }
        for row in sums.sort_by([("teacher", "ascending"), ("verdict", "ascending")]).to_pylist()
    ]
