"""Metrics and ledger rows, as JSON or as Arrow."""

from __future__ import annotations

import json
from dataclasses import dataclass
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


@dataclass(frozen=True)
class RowsWanted:
    """Of one table of one replica."""

    replica: str
    kind: str
    """'metrics' or 'ledger'."""
    after_step: int = -1
    names: frozenset[str] | None = None
    max_points: int | None = None
    """Of each series at most, see `thinning`."""

    def pick(self, table: pa.Table) -> tuple[pa.Table, dict[str, int] | None]:
        """Rows of steps above `after_step`, ascending, each (step, name) once; and how many of how many are kept, where
        some are left out."""
        table = table.filter(pc.field("step") > self.after_step)
        if self.names is not None:
            table = table.filter(pc.field("name").isin(sorted(self.names)))
        whole = table.num_rows
        if self.max_points is not None:
            table = thin_table(table, *SERIES[self.kind], self.max_points)
        return table, {"rows": whole, "kept": table.num_rows} if table.num_rows < whole else None


def read_rows(run: RunDir, wanted: RowsWanted) -> dict[str, Any]:
    """Whole steps, as many as one answer carries.

    `next_after_step` says how to go on when there are more; else it is None. `thinned` says how many rows there were
    and how many are left, and is None where none was left out. Of the ledger, `totals` tells how often each teacher was
    heard over all steps.
    """
    whole = read(run, wanted.replica, wanted.kind)
    table, thinned = wanted.pick(whole)
    table, following = _first_page(table)
    answer = {"items": finite(table.to_pylist()), "next_after_step": following, "thinned": thinned}
    return answer | {"totals": _totals(whole)} if wanted.kind == "ledger" else answer


def read_arrow(run: RunDir, wanted: RowsWanted) -> bytes:
    """All rows at once, as an Arrow stream; its metadata say `thinned` as the JSON does."""
    table, thinned = wanted.pick(read(run, wanted.replica, wanted.kind))
    metadata = {**(table.schema.metadata or {}), b"thinned": json.dumps(thinned).encode()}
    table = table.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


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
