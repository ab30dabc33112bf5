"""Fewer rows of a long series, so that a chart of them looks the same: of each stretch its extremes and its end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

KEPT_PER_BUCKET = 4
"""At most: the least, the greatest, the last, and the first that is no number."""


def thin(values: npt.NDArray[np.float64], max_points: int) -> npt.NDArray[np.int64]:
    """Indices, ascending, of at most `max_points` (4 or more) of `values`, which are in order.

    As many as there are, if they are few enough. Else they are cut into stretches of nearly equal length, and each
    leaves its least, its greatest and its last value, and the first that is not finite: neither a spike nor a
    divergence is ever thinned away.
    """
    count = len(values)
    if count <= max_points:
        return np.arange(count)
    buckets = max_points // KEPT_PER_BUCKET
    edges = np.arange(buckets + 1) * count // buckets
    finite = np.isfinite(values)
    least = _first_of(np.where(finite, values, np.inf), edges, np.minimum)
    greatest = _first_of(np.where(finite, values, -np.inf), edges, np.maximum)
    odd = _first_of((~finite).astype(np.float64), edges, np.maximum)
    return np.unique(np.concatenate([least, greatest, odd[~finite[odd]], edges[1:] - 1]))


def _first_of(values: npt.NDArray[np.float64], edges: npt.NDArray[np.int64], best: np.ufunc) -> npt.NDArray[np.int64]:
    """Of each stretch, the index of the first value that is its `best`."""
    wanted = np.repeat(best.reduceat(values, edges[:-1]), np.diff(edges))
    hits = np.flatnonzero(values == wanted)
    return hits[np.searchsorted(hits, edges[:-1])]


def thin_table(table: pa.Table, by: Sequence[str], value: str, max_points: int) -> pa.Table:
    """At most `max_points` rows of each group, which are those that are alike in the columns `by`; in the old order."""
    if table.num_rows == 0:
        return table
    values = table[value].to_numpy().astype(np.float64)
    kept = [rows[thin(values[rows], max_points)] for rows in _groups(table, by)]
    return table.take(pa.array(np.sort(np.concatenate(kept))))


def _groups(table: pa.Table, by: Sequence[str]) -> list[npt.NDArray[np.int64]]:
    """The row numbers of each group, ascending."""
    codes = np.zeros(table.num_rows, np.int64)
    for name in by:
        column = table[name].combine_chunks().dictionary_encode(null_encoding="encode")
        codes = codes * max(1, len(column.dictionary)) + column.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
