"""Small synthetic data sets of the layouts that recipes read, under the names their specs use by default.

    synthetic_datasets(home); monkeypatch.setenv("CODISTILL_DATA", str(home))

Each can be learnt: a few dozen steps bring the loss well below that of a constant. The same call gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from codistill.data.card import PARTS, Column, Origin, Part
from codistill.data.catalog import Dataset
from codistill.data.layouts import Images, Layout, Rows, image_layout, row_layout, text_layout
from codistill.data.writing import Description, write_dataset

SIZES: dict[Part, int] = {"train": 600, "validation": 120, "test": 160}
TEXT_SIZES: dict[Part, int] = {"train": 1500, "validation": 700, "test": 700}
"""Enough for the 256 windows of 128 bytes that the recipe `text` looks at by default."""


def synthetic_datasets(home: Path) -> None:
    """All three, in a second: `fashion-mnist`, `gcide`, `flights`."""
    write_images(home)
    write_text(home)
    write_flights(home)


def write_images(home: Path, name: str = "fashion-mnist", *, side: int = 28, classes: int = 10) -> Dataset:
    """Images [1, side, side]: each class is a pattern of grey squares of its own, under noise."""
    random = np.random.default_rng(1)
    squares = random.integers(0, 160, (classes, 1, (side + 6) // 7, (side + 6) // 7))
    patterns = squares.repeat(7, axis=2).repeat(7, axis=3)[:, :, :side, :side]
    splits: dict[Part, Images] = {}
    for part in PARTS:
        labels = random.integers(0, classes, SIZES[part])
        noise = random.integers(0, 96, (SIZES[part], 1, side, side))
        splits[part] = Images((patterns[labels] + noise).astype(np.uint8), labels)
    return _write(home, name, image_layout(splits, [f"class {index}" for index in range(classes)]))


def write_text(home: Path, name: str = "gcide") -> Dataset:
    """Entries of made-up words from a small vocabulary, about 60 bytes each."""
    random = np.random.default_rng(2)
    words = ["".join(random.choice(list("abcdefghij"), random.integers(2, 7))) for _ in range(40)]
    entries: dict[Part, Sequence[str]] = {
        part: [" ".join(random.choice(words, random.integers(8, 16))) for _ in range(TEXT_SIZES[part])]
        for part in PARTS
    }
    return _write(home, name, text_layout(entries))


def write_flights(home: Path, name: str = "flights", *, airports: int = 12) -> Dataset:
    """Flights that are late more often in the evening and from some airports."""
    random = np.random.default_rng(3)
    columns = {
        "hour": Column(type="uint8", meaning="hour of departure"),
        "weekday": Column(type="uint8", meaning="0 is Monday"),
        "origin": Column(type="uint16", meaning="airport"),
        "destination": Column(type="uint16", meaning="airport"),
        "distance": Column(type="uint16", meaning="as the crow flies", unit="miles"),
        "day": Column(type="uint16", meaning="day of the year"),
        "late": Column(type="uint8", meaning="1: 15 minutes or more late"),
    }
    names = {
        "hour": [str(hour) for hour in range(24)],
        "weekday": ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"],
        "origin": ["(other)", *(f"A{index:02d}" for index in range(1, airports))],
        "destination": ["(other)", *(f"A{index:02d}" for index in range(1, airports))],
    }
    splits: dict[Part, Rows] = {part: _flights(random, SIZES[part], airports) for part in PARTS}
    return _write(home, name, row_layout(splits, columns, names, "late"))


def _flights(random: np.random.Generator, rows: int, airports: int) -> Rows:
    hour, weekday = random.integers(0, 24, rows), random.integers(0, 7, rows)
    origin, destination = random.integers(1, airports, rows), random.integers(1, airports, rows)
    logit = (hour - 16) / 3 + np.where(origin % 3 == 0, 1.5, -1.0)
    return Rows(
        categories={
            "hour": hour.astype(np.uint8),
            "weekday": weekday.astype(np.uint8),
            "origin": origin.astype(np.uint16),
            "destination": destination.astype(np.uint16),
        },
        numbers={"distance": random.integers(80, 2700, rows).astype(np.uint16)},
        others={"day": random.integers(1, 182, rows).astype(np.uint16)},
        label=(random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.uint8),
    )


def _write(home: Path, name: str, layout: Layout) -> Dataset:
    description = Description(name, f"Synthetic {name}", "Made up for tests.", "none", Origin(path="tests/datasets.py"))
    return write_dataset(home, description, layout).dataset
