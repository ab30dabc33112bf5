"""The three layouts of data that recipes read: images, text, rows. Arrays in, tables and facts out. Imports no torch.

They are for sources and for anybody's own data: `write_dataset(home, description, image_layout(...))` makes a data set
that the recipe `images` can be given by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import JsonValue

from codistill.data.card import PARTS, Column, Part

Array = npt.NDArray[Any]
IMAGE_GROUP_ROWS, TEXT_GROUP_ROWS, ROW_GROUP_ROWS = 8192, 8192, 65_536


@dataclass(frozen=True)
class Layout:
    """What is in a data set: its columns, its rows by split, and facts that a recipe needs before it reads any."""

    columns: Mapping[str, Column]
    facts: Mapping[str, JsonValue]
    tables: Mapping[Part, pa.Table]
    row_group_rows: int


@dataclass(frozen=True)
class Images:
    """Images [n, channels, height, width] uint8 and labels [n] in 0 .. classes - 1."""

    images: Array
    labels: Array


def image_layout(splits: Mapping[Part, Images], class_names: Sequence[str]) -> Layout:
    """Images with labels. Mean and deviation of each channel, of values in 0..1, are those of the training split."""
    _, channels, height, width = splits["train"].images.shape
    size = channels * height * width
    moments = [_moments(splits["train"].images[:, channel]) for channel in range(channels)]
    columns = {
        "image": Column(
            type=f"fixed_size_binary[{size}]",
            meaning=f"pixels [{channels}, {height}, {width}] (channel, row, column), one byte each",
            unit="0 = black .. 255 = white",
        ),
        "label": Column(type="uint16", meaning=f"class: {', '.join(f'{i} {n}' for i, n in enumerate(class_names))}"),
    }
    facts: dict[str, JsonValue] = {
        "image_shape": [channels, height, width],
        "class_names": list(class_names),
        "pixel_mean": [mean for mean, _ in moments],
        "pixel_std": [deviation for _, deviation in moments],
    }
    return Layout(columns, facts, {part: _image_table(splits[part]) for part in PARTS}, IMAGE_GROUP_ROWS)


def text_layout(entries: Mapping[Part, Sequence[str]]) -> Layout:
    """Entries of text; each gets a line feed at its end, so that a split is its entries one after another."""
    tables: dict[Part, pa.Table] = {
        part: pa.table({"text": pa.array([f"{entry}\n" for entry in entries[part]], pa.string())}) for part in PARTS
    }
    columns = {"text": Column(type="string", meaning="one entry, UTF-8, with a line feed at its end")}
    sizes: dict[str, JsonValue] = {part: sum(len(entry.encode()) + 1 for entry in entries[part]) for part in PARTS}
    return Layout(columns, {"text_bytes": sizes}, tables, TEXT_GROUP_ROWS)


@dataclass(frozen=True)
class Rows:
    """Rows as columns [n] by name: category codes, numbers, other columns that no model sees, and labels 0 or 1."""

    categories: Mapping[str, Array]
    numbers: Mapping[str, Array]
    others: Mapping[str, Array]
    label: Array

    @property
    def columns(self) -> dict[str, Array]:
        return {**self.categories, **self.numbers, **self.others}


def row_layout(
    splits: Mapping[Part, Rows], columns: Mapping[str, Column], categories: Mapping[str, Sequence[str]], label: str
) -> Layout:
    """Rows with a yes-or-no label. `categories` names, for each column of codes, what the codes 0, 1, ... stand for;
    numbers are to be normalised by the mean and deviation of the training split."""
    numbers: dict[str, JsonValue] = {
        name: {"mean": round(float(values.mean()), 6), "std": round(float(values.std()), 6)}
        for name, values in splits["train"].numbers.items()
    }
    facts: dict[str, JsonValue] = {
        "categories": {name: list(names) for name, names in categories.items()},
        "numbers": numbers,
        "label": label,
    }
    tables: dict[Part, pa.Table] = {
        part: pa.table({**splits[part].columns, label: splits[part].label}) for part in PARTS
    }
    return Layout(columns, facts, tables, ROW_GROUP_ROWS)


def _image_table(split: Images) -> pa.Table:
    pixels = np.ascontiguousarray(split.images, np.uint8)
    size = pixels[0].size if len(pixels) else 1
    images = pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(pixels), [None, pa.py_buffer(pixels)])
    return pa.table({"image": images, "label": split.labels.astype(np.uint16)})


def _moments(pixels: Array) -> tuple[float, float]:
    """Mean and standard deviation of bytes, as shares of 255; from their counts, which fits in any memory."""
    shares = np.arange(256) / 255
    weights = np.bincount(pixels.reshape(-1), minlength=256) / pixels.size
    mean = float(weights @ shares)
    return round(mean, 6), round(float(weights @ (shares - mean) ** 2) ** 0.5, 6)
