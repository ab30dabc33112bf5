"""Rows of Parquet files by id: row groups are read when first asked for and kept, decoded, up to a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from codistill.batch import Batch
from codistill.data.split import draw_ids
from codistill.randomness import Name

Array = npt.NDArray[Any]
Columns = Mapping[str, Array]

CACHE_BYTES = 2 * 1024**3


class Decode(Protocol):
    """From the columns of a row group to arrays whose first axis is the row; it pickles."""

    def __call__(self, columns: Columns, /) -> Columns: ...


class Assemble(Protocol):
    """From the decoded rows of a batch to the batch, augmented when there is a stream; it pickles."""

    def __call__(self, ids: Tensor, rows: Columns, stream: tuple[Name, ...] | None, /) -> Batch: ...


@dataclass
class ParquetRows:
    """Rows `first_id`, `first_id` + 1, ... of Parquet files, one after another. It pickles without what it has read."""

    paths: Sequence[Path]
    first_id: int
    columns: Sequence[str]
    decode: Decode
    cache_bytes: int = CACHE_BYTES
    """Of decoded row groups; the one used least recently is dropped, but never the one being read."""
    _groups: OrderedDict[int, Columns] = field(init=False, repr=False, default_factory=OrderedDict[int, Columns])
    _whole: Columns | None = field(init=False, repr=False, default=None)
    """All row groups as one, once all have been read and fit: a batch is then one gather for each column."""

    def __reduce__(self) -> tuple[type[ParquetRows], tuple[object, ...]]:
        return ParquetRows, (self.paths, self.first_id, self.columns, self.decode, self.cache_bytes)

    def read(self, ids: Array) -> Columns:
        """The decoded rows of `ids` [n] int64, in that order. Raises `IndexError` for an id that is not here."""
        rows = ids - self.first_id
        if len(rows) and not 0 <= rows.min() <= rows.max() < self._starts[-1]:
            last = self.first_id + int(self._starts[-1]) - 1
            raise IndexError(f"ids reach from {ids.min()} to {ids.max()}, here are {self.first_id} to {last}")
        if self._whole is not None:
            # `take` copies whole rows, where indexing would go value by value.
            return {name: values.take(rows, axis=0) for name, values in self._whole.items()}
        gathered: dict[str, Array] = {}
        for group, places, within in self._by_group(rows):
            for name, values in self._group(group).items():
                if name not in gathered:
                    gathered[name] = np.empty((len(ids), *values.shape[1:]), values.dtype)
                gathered[name][places] = values[within]
        if len(self._groups) == len(self._places):
            self._join_groups()
        return gathered

    def _join_groups(self) -> None:
        groups = [self._groups.pop(number) for number in range(len(self._places))]
        self._whole = (
            {name: np.concatenate([group[name] for group in groups]) for name in groups[0]} if groups else None
        )

    @property
    def held_bytes(self) -> int:
        """Of decoded row groups that are kept now."""
        whole = {} if self._whole is None else self._whole
        return sum(_bytes(columns) for columns in (whole, *self._groups.values()))

    def _by_group(self, rows: Array) -> Iterator[tuple[int, Array, Array]]:
        """Each row group that is needed: its number, places in the batch, rows within the group."""
        groups = self._starts.searchsorted(rows, side="right") - 1
        order = groups.argsort(kind="stable")
        needed, first = np.unique(groups[order], return_index=True)
        within = rows - self._starts[groups]
        for group, places in zip(needed.tolist(), np.split(order, first[1:]), strict=True):
            yield group, places, within[places]

    def _group(self, number: int) -> Columns:
        held = self._groups.get(number)
        if held is not None:
            self._groups.move_to_end(number)
            return held
        file, group = self._places[number]
        table = file.read_row_group(group, columns=list(self.columns))
        decoded = self.decode({name: as_numpy(table[name]) for name in self.columns})
        room = self.cache_bytes - _bytes(decoded)
        while self._groups and self.held_bytes > room:
            self._groups.popitem(last=False)
        self._groups[number] = decoded
        return decoded

    @cached_property
    def _places(self) -> list[tuple[pq.ParquetFile, int]]:
        files = [pq.ParquetFile(path, memory_map=True) for path in self.paths]
        return [(file, group) for file in files for group in range(file.metadata.num_row_groups)]

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """The first row of each group, and after them the number of all rows."""
        sizes = [file.metadata.row_group(group).num_rows for file, group in self._places]
        return np.cumsum([0, *sizes], dtype=np.int64)


def as_numpy(column: pa.ChunkedArray) -> Array:
    """A column without missing values as an array [n], or [n, size] of bytes for binary of a fixed size; a view of
    Arrow's memory where it lies in one piece. Raises `ValueError` when values are missing."""
    if column.null_count:
        raise ValueError(f"{column.null_count} of {len(column)} values are missing; a data set may have none")
    chunk: Any = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if not pa.types.is_fixed_size_binary(chunk.type):
        return chunk.to_numpy(zero_copy_only=False)
    size, values = chunk.type.byte_width, chunk.buffers()[1]
    return np.frombuffer(values, np.uint8, count=len(chunk) * size, offset=chunk.offset * size).reshape(-1, size)


def _bytes(columns: Columns) -> int:
    return sum(values.nbytes for values in columns.values())


@dataclass(frozen=True)
class ParquetSplit:
    """A split whose samples are rows of Parquet files. A copy in another process opens the files itself."""

    rows: ParquetRows
    count: int
    """Rows of the split."""
    assemble: Assemble
    size: int | None = None
    """Samples to draw, the same for every seed; all when None."""
    draw: str = "train"

    @property
    def ids(self) -> Tensor:
        """Raises `ValueError` when fewer than `size` are there."""
        return self._ids

    @cached_property
    def _ids(self) -> Tensor:
        return draw_ids(torch.arange(self.rows.first_id, self.rows.first_id + self.count), self.size, self.draw)

    def __reduce__(self) -> tuple[type[ParquetSplit], tuple[object, ...]]:
        return ParquetSplit, (self.rows, self.count, self.assemble, self.size, self.draw)

    def read(self, ids: Tensor, stream: tuple[Name, ...] | None = None) -> Batch:
        return self.assemble(ids, self.rows.read(ids.numpy()), stream)
