"""A text as bytes, cut into windows of equal length: what a language model over bytes is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from torch import Tensor

from codistill.batch import Batch
from codistill.data.split import draw_ids
from codistill.randomness import Name

TEXT_COLUMN = "text"
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ByteWindows:
    """The windows of one split. Window i is the bytes from i * context on, and one more to predict the last.

    A window's id is the place of its first byte in the whole data set (training, then validation, then test): no two
    splits share one, and an id names the same text for ever. The split's text is held in memory whole; a copy in
    another process reads the files itself.
    """

    paths: Sequence[Path]
    first_byte: int
    """Place of the split's first byte in the data set."""
    text_bytes: int
    """Length of the split's text."""
    context: int
    size: int | None = None
    """Windows to draw, the same for every seed; all when None."""
    draw: str = "train"

    @property
    def ids(self) -> Tensor:
        """Raises `ValueError` when fewer than `size` windows are there."""
        return self._ids

    @cached_property
    def _ids(self) -> Tensor:
        windows = max(0, (self.text_bytes - 1) // self.context)
        return draw_ids(self.first_byte + torch.arange(windows) * self.context, self.size, self.draw)

    def __reduce__(self) -> tuple[type[ByteWindows], tuple[object, ...]]:
        return ByteWindows, (self.paths, self.first_byte, self.text_bytes, self.context, self.size, self.draw)

    def read(self, ids: Tensor, stream: tuple[Name, ...] | None = None) -> Batch:
        """`x` [n, context] uint8 holds the bytes, `y` [n, context] int64 the byte after each."""
        windows = torch.from_numpy(self._windows[ids.numpy() - self.first_byte])
        return Batch(ids=ids, y=windows[:, 1:].long(), views={"x": windows[:, :-1]})

    @cached_property
    def text(self) -> Bytes:
        """All bytes of the split. Raises `ValueError` when they are not as many as the data set states."""
        text = read_text(self.paths)
        if len(text) != self.text_bytes:
            raise ValueError(f"the data set states {self.text_bytes} bytes of text, {self.paths[0]} has {len(text)}")
        return text

    @cached_property
    def _windows(self) -> npt.NDArray[np.uint8]:
        return np.lib.stride_tricks.sliding_window_view(self.text, self.context + 1)


def read_text(paths: Sequence[Path]) -> Bytes:
    """The strings of the column `text`, one after another, as their bytes lie in Arrow's buffers."""
    files = [pq.ParquetFile(path, memory_map=True) for path in paths]
    groups = [file.read_row_group(number, columns=[TEXT_COLUMN]) for file in files for number in range(_groups(file))]
    return np.concatenate([np.zeros(0, np.uint8), *(_bytes(part) for table in groups for part in table[0].chunks)])


def _groups(file: pq.ParquetFile) -> int:
    return file.metadata.num_row_groups


def _bytes(strings: Any) -> Bytes:
    """Of an Arrow array of strings without missing ones: its values, a view."""
    if strings.null_count:
        raise ValueError(f"{strings.null_count} of {len(strings)} texts are missing; a data set may have none")
    wide = str(strings.type).startswith("large_")
    _, offsets, values = strings.buffers()
    ends = np.frombuffer(offsets, np.int64 if wide else np.int32, count=strings.offset + len(strings) + 1)
    first, last = int(ends[strings.offset]), int(ends[-1])
    return np.frombuffer(values, np.uint8, count=last - first, offset=first)
