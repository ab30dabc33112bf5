"""What a replica writes down while it trains: metrics and the ledger, as immutable Arrow parts.

A part is written every few seconds under a name of its own and never touched again, so a reader needs no lock and a
kill loses at most the last seconds, which the resumed replica repeats. Each row carries the fence and the incarnation
that wrote it; a reader keeps, per step, the rows of the highest (fence, incarnation), so nothing counts twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from codistill.run_dir import RunDir, StorageError

_KEYS = [pa.field("step", pa.int64()), pa.field("fence", pa.int32()), pa.field("incarnation", pa.int32())]

METRICS = pa.schema(
    [
        *_KEYS,
        pa.field("time", pa.timestamp("us", tz="UTC")),
        pa.field("name", pa.string()),
        pa.field("value", pa.float64()),
    ],
    metadata={"schema_version": "1"},
)
"""Long form: one value of one name at one step (the number of steps completed when it was taken)."""

NOBODY = "nobody"
"""The ledger's verdict of a step without teachers; its row names none."""

LEDGER = pa.schema(
    [
        *_KEYS,
        pa.field("teacher", pa.string()),
        pa.field("teacher_fence", pa.int32()),
        pa.field("teacher_incarnation", pa.int32()),
        pa.field("version", pa.int64()),
        pa.field("lag_steps", pa.int64()),
        pa.field("offset_steps", pa.int64()),
        pa.field("bytes_received", pa.int64()),
        pa.field("verdict", pa.string()),
    ],
    metadata={"schema_version": "1"},
)
"""One row per step and teacher heard in it (verdict `accepted`), one per snapshot refused, and one per step that found
nobody to learn from (`nobody`): every step after burn-in has a row of the incarnation that made it.

`step` is the index of the step (updates completed before it). `bytes_received`, by all ranks together, is not 0 only in
the row where a snapshot is new. `lag_steps` is null where the peer's step was not known.
"""


class Recorder:
    """Gathers rows and writes them out as parts; without a directory, drops them.

    Not for several threads but one writer; `flush` may come from anywhere. Raises `StorageError` when the disk refuses.
    """

    def __init__(
        self,
        directory: Path | None,
        schema: pa.Schema,
        *,
        fence: int,
        incarnation: int,
        flush_interval_s: float = 2.0,
    ) -> None:
        self._directory, self._schema = directory, schema
        self._fence, self._incarnation = fence, incarnation
        self._interval_s = flush_interval_s
        self._rows: list[dict[str, Any]] = []
        self._next_part = 0
        self._last_flush = time.monotonic()
        self._lock = threading.Lock()
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)

    def add(self, step: int, **values: Any) -> None:
        if self._directory is None:
            return
        row = {"step": step, "fence": self._fence, "incarnation": self._incarnation, **values}
        with self._lock:
            self._rows.append(row)
        if time.monotonic() - self._last_flush >= self._interval_s:
            self.flush()

    def add_values(self, step: int, values: Mapping[str, float]) -> None:
        """One metrics row per named value."""
        now = int(time.time() * 1e6)
        for name, value in values.items():
            self.add(step, time=now, name=name, value=value)

    def flush(self) -> None:
        """Write what has been gathered as one new part."""
        with self._lock:
            rows, self._rows = self._rows, []
            self._last_flush = time.monotonic()
            if not rows or self._directory is None:
                return
            name = f"part-{self._incarnation:04d}-{self._next_part:06d}.arrow"
            self._next_part += 1
        table = pa.Table.from_pylist(rows, schema=self._schema)
        final, temporary = self._directory / name, self._directory / f".{name}.tmp"
        try:
            with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, self._schema) as writer:
                writer.write_table(table)
            temporary.rename(final)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StorageError(f"cannot write {final}: {error}; is there room and permission?") from error


def compact(directory: Path, schema: pa.Schema) -> None:
    """Turn all parts of a finished replica into one Parquet file, then remove them.

    A reader that comes between the two sees rows twice and drops the doubles, as always.
    """
    parts = sorted(directory.glob("part-*.arrow"))
    if not parts:
        return
    temporary = directory / ".all.parquet.tmp"
    pq.write_table(_read_directory(directory, schema), temporary, compression="zstd")
    temporary.rename(directory / "all.parquet")
    for part in parts:
        part.unlink()


def read(run: RunDir, replica: str, kind: str) -> pa.Table:
    """All rows of one replica over all attempts, each step once, ascending by step.

    `kind` is "metrics" or "ledger". Empty when nothing was written yet. Of older attempts only what stood when the
    newest began: what a driver thought dead still writes is never read.
    """
    schema = {"metrics": METRICS, "ledger": LEDGER}[kind]
    fences = run.fences()
    inherited = run.inherited("records", fences[-1]) if fences else set[Path]()
    tables: list[pa.Table] = [schema.empty_table()]
    for fence in fences:
        parts = _parts(run.replica(fence, replica) / kind)
        tables += _read_parts([part for part in parts if fence == fences[-1] or part in inherited], schema)
    return newest_rows(pa.concat_tables(tables))


def newest_rows(table: pa.Table) -> pa.Table:
    """Of every step, only the rows of the highest (fence, incarnation) that wrote it; identical rows once.

    Rows of a metric keep their own: a value logged at a step that the resumed replica logs again is replaced, one that
    it does not (an evaluation, say) stays.
    """
    if table.num_rows == 0:
        return table
    keys = ["step", "name"] if "name" in table.column_names else ["step"]
    age = table["fence"].to_numpy().astype(np.int64) * (1 << 32) + table["incarnation"].to_numpy()
    aged = table.append_column("age", pa.array(age))
    newest = aged.group_by(keys).aggregate([("age", "max")])
    kept = aged.join(newest, keys=keys, join_type="inner").filter(pc.field("age") == pc.field("age_max"))
    kept = kept.select(table.column_names).group_by(table.column_names).aggregate([])
    return kept.select(table.column_names).sort_by([("step", "ascending")]).cast(table.schema)


def values(table: pa.Table, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric out of a metrics table."""
    rows = table.filter(pc.field("name") == name)
    return rows["step"].to_pylist(), rows["value"].to_pylist()


def _read_directory(directory: Path, schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *_read_parts(_parts(directory), schema)])


def _parts(directory: Path) -> list[Path]:
    # Parts first: compaction writes the Parquet file before it removes them, so this order misses none.
    return [*sorted(directory.glob("part-*.arrow")), *directory.glob("all.parquet")]


def _read_parts(parts: Iterable[Path], schema: pa.Schema) -> Iterable[pa.Table]:
    for part in parts:
        try:
            if part.suffix == ".parquet":
                yield pq.read_table(part).cast(schema)
            else:
                with pa.memory_map(str(part)) as source:
                    yield pa.ipc.open_file(source).read_all().cast(schema)
        except FileNotFoundError:  # compacted meanwhile
            continue
