"""Predictions as an Arrow stream, and the currency that they are between replicas.

A row is a sample: `sample_id`, `made_at`, and the columns of the form, lists of fixed length. Draws travel as counts:
at each place the number of distinct classes, the classes, and how often each was drawn; beside them the
log-probability of the label.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from codistill.exchange.gate import Gate
from codistill.exchange.predictions import Form, Rows, are_distributions, joined
from codistill.exchange.snapshot import Array, Arrays, Measures
from codistill.ranks import Ranks

NAME = "predictions"
"""Of the one array that a snapshot of predictions is."""


@dataclass(frozen=True)
class OfPredictions:
    """The currency of predictions (see `Currency`): what is shown is what was said since the version before."""

    form: Form
    every: bool = True

    def gate(self, peer: int | None = None) -> Gate:
        measures = Measures(schema=schema_of_stream, norm=lambda arrays: soundness(self.form, arrays))
        return Gate(_digest(arrow_schema(self.form)), measures)

    def arrays(self, shown: Sequence[Rows], ranks: Ranks, into: Arrays | None = None) -> Arrays:
        return to_arrays(self.form, of_all_ranks(self.form, shown, ranks))


def of_all_ranks(form: Form, said: Sequence[Rows], ranks: Ranks) -> Rows:
    """What all ranks said, each sample once, on every rank; all call it."""
    mine = joined(form, said)
    if ranks.count == 1:
        return mine.newest()
    streams = ranks.gather_bytes(to_arrays(form, mine)[NAME])
    return joined(form, [from_arrays(form, {NAME: stream}) for stream in streams]).newest()


def arrow_schema(form: Form) -> pa.Schema:
    """Of the stream; its metadata name the form."""
    fields = [pa.field("sample_id", pa.int64()), pa.field("made_at", pa.int64())]
    if form.kind == "sampled":
        classes = pa.from_numpy_dtype(form.class_type)
        fields += [
            pa.field("log_labels", pa.list_(pa.float16(), form.count)),
            pa.field("distinct", pa.list_(pa.uint8(), form.count)),
            pa.field("classes", pa.list_(classes)),
            pa.field("counts", pa.list_(pa.uint8())),
        ]
    else:
        fields += [
            pa.field(name, pa.list_(pa.from_numpy_dtype(dtype), width)) for name, (dtype, width) in form.columns.items()
        ]
    return pa.schema(fields, metadata={"form": json.dumps(asdict(form), sort_keys=True)})


def to_arrays(form: Form, rows: Rows) -> dict[str, Array]:
    """The stream as one array of bytes."""
    schema = arrow_schema(form)
    columns = _counted(form, rows) if form.kind == "sampled" else _listed(rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        batch = pa.record_batch([pa.array(rows.ids), pa.array(rows.made_at), *columns], schema=schema)
        writer.write_batch(batch)
    return {NAME: np.frombuffer(sink.getvalue(), np.uint8)}


def from_arrays(form: Form, arrays: Arrays) -> Rows:
    """The rows of a stream, as views of its bytes but for draws. Raises `ValueError` when it is none of this form."""
    with pa.ipc.open_stream(pa.py_buffer(arrays[NAME])) as reader:
        if not reader.schema.equals(arrow_schema(form), check_metadata=True):
            raise ValueError(f"the stream has columns {reader.schema.names}, which are not those of {form}")
        parts = [_rows_of(form, batch) for batch in reader]
    return parts[0] if len(parts) == 1 else joined(form, parts)


def schema_of_stream(arrays: Arrays) -> str:
    """Digest of the stream's schema; empty for what is no stream."""
    try:
        with pa.ipc.open_stream(pa.py_buffer(arrays[NAME])) as reader:
            return _digest(reader.schema)
    except (KeyError, pa.ArrowException):
        return ""


def soundness(form: Form, arrays: Arrays) -> float:
    """1 where every row is a distribution, NaN otherwise: what stands in the place of a norm."""
    try:
        return 1.0 if are_distributions(form, from_arrays(form, arrays).columns) else math.nan
    except (KeyError, ValueError, pa.ArrowException):
        return math.nan


def _digest(schema: pa.Schema) -> str:
    return xxhash.xxh3_128_hexdigest(schema.serialize().to_pybytes())


def _listed(rows: Rows) -> list[Any]:
    flat = [(pa.array(values.reshape(-1)), values.shape[1]) for values in rows.columns.values()]
    return [pa.FixedSizeListArray.from_arrays(values, width) for values, width in flat]


def _counted(form: Form, rows: Rows) -> list[Any]:
    draws = rows.columns["draws"].reshape(-1, form.size)
    first = np.ones(draws.shape, bool)
    first[:, 1:] = draws[:, 1:] != draws[:, :-1]
    starts = np.append(np.flatnonzero(first), draws.size)
    distinct = first.sum(1)
    offsets = np.concatenate([[0], distinct.reshape(-1, form.count).sum(1).cumsum()]).astype(np.int32)
    return [
        pa.FixedSizeListArray.from_arrays(pa.array(rows.columns["log_labels"].reshape(-1)), form.count),
        pa.FixedSizeListArray.from_arrays(pa.array(distinct.astype(np.uint8)), form.count),
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(draws[first])),
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.diff(starts).astype(np.uint8))),
    ]


def _rows_of(form: Form, batch: pa.RecordBatch) -> Rows:
    def values(name: str) -> Array:
        return batch.column(name).flatten().to_numpy(zero_copy_only=True)

    if form.kind == "sampled":
        draws = _drawn(form, len(batch), values("distinct"), values("classes"), values("counts"))
        columns = {"draws": draws, "log_labels": values("log_labels").reshape(-1, form.count)}
    else:
        columns = {name: values(name).reshape(-1, width) for name, (_, width) in form.columns.items()}
    ids, made_at = batch.column("sample_id").to_numpy(), batch.column("made_at").to_numpy()
    return Rows(ids, made_at, columns)


def _drawn(form: Form, n: int, distinct: Array, classes: Array, counts: Array) -> Array:
    """The draws [n, predictions x draws], ascending within each prediction."""
    ends = distinct.cumsum(dtype=np.int64)
    totals = np.concatenate([[0], counts.cumsum(dtype=np.int64)])
    fits = len(classes) == len(counts) == (ends[-1] if len(ends) else 0)
    if not fits or np.any(totals[ends] != form.size * np.arange(1, len(ends) + 1)):
        raise ValueError(f"counts of a prediction do not add up to {form.size} draws")
    return np.repeat(classes, counts).reshape(n, form.count * form.size)
