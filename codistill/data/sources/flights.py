"""US flights of January to June 2001 (Bureau of Transportation Statistics): will a flight arrive late?"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import JsonValue

from codistill.data.card import PARTS, Column, Part
from codistill.data.home import DataError
from codistill.data.layouts import Array, Layout, Rows, row_layout
from codistill.data.sources.base import Package, Source

FILE = "flights-3m.parquet"
READ_COLUMNS = ("date", "delay", "distance", "origin", "destination")
LATE_MIN = 15
LAST_TRAINING_DAY, LAST_VALIDATION_DAY = 135, 151
"""Days of the year: 15 May and 31 May."""
EPOCH_WEEKDAY = 3
"""1 January 1970 was a Thursday."""
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
UNSEEN = "(not seen in training)"

COLUMNS = {
    "hour": Column(type="uint8", meaning="hour at which the flight took off", unit="h, local time"),
    "weekday": Column(type="uint8", meaning="day of the week, 0 = Monday"),
    "origin": Column(type="uint16", meaning="airport it left; the codes' names are among the facts"),
    "destination": Column(type="uint16", meaning="airport it flew to; the codes' names are among the facts"),
    "distance": Column(type="uint16", meaning="distance between the two", unit="miles"),
    "day": Column(type="uint16", meaning="day of the year, by which the splits are cut; no model is shown it"),
    "late": Column(type="uint8", meaning=f"1 when it arrived {LATE_MIN} minutes late or later, else 0"),
}


def build(files: Mapping[str, bytes]) -> Layout:
    """Training up to 15 May, validation the rest of May, test June: the model is asked about its future."""
    try:
        read = pq.read_table(io.BytesIO(files[FILE]), columns=list(READ_COLUMNS))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{FILE} is not a Parquet file with the columns {', '.join(READ_COLUMNS)}: {error}; is it the right one?"
        ) from None
    whole = read.drop_null()
    day = _day_of_year(whole["date"].to_numpy())
    chosen: dict[Part, Array] = {
        "train": day <= LAST_TRAINING_DAY,
        "validation": (day > LAST_TRAINING_DAY) & (day <= LAST_VALIDATION_DAY),
        "test": day > LAST_VALIDATION_DAY,
    }
    tables = {part: whole.filter(pa.array(mask)) for part, mask in chosen.items()}
    airports = {name: sorted(tables["train"][name].unique().to_pylist()) for name in ("origin", "destination")}
    splits: dict[Part, Rows] = {part: _rows(tables[part], airports) for part in PARTS}
    categories = {
        "hour": [f"{hour:02d}" for hour in range(24)],
        "weekday": WEEKDAYS,
        **{name: [UNSEEN, *names] for name, names in airports.items()},
    }
    layout = row_layout(splits, COLUMNS, categories, label="late")
    incomplete: dict[str, JsonValue] = {"rows_left_out_incomplete": len(read) - len(whole)}
    return replace(layout, facts={**layout.facts, **incomplete})


def _rows(table: pa.Table, airports: Mapping[str, list[str]]) -> Rows:
    # Neither the delay nor the minutes may be shown: `date` seems to be when the flight left, so that its minutes tell
    # how late it is.
    date = table["date"].to_numpy()
    return Rows(
        categories={
            "hour": _narrow(date.astype("M8[h]").astype(np.int64) % 24, np.uint8),
            "weekday": _narrow((date.astype("M8[D]").astype(np.int64) + EPOCH_WEEKDAY) % 7, np.uint8),
            "origin": _codes(table["origin"], airports["origin"]),
            "destination": _codes(table["destination"], airports["destination"]),
        },
        numbers={"distance": _narrow(table["distance"].to_numpy(), np.uint16)},
        others={"day": _narrow(_day_of_year(date), np.uint16)},
        label=_narrow(table["delay"].to_numpy() >= LATE_MIN, np.uint8),
    )


def _day_of_year(date: Array) -> Array:
    return (date.astype("M8[D]") - date.astype("M8[Y]").astype("M8[D]")).astype(np.int64) + 1


def _codes(values: pa.ChunkedArray, names: list[str]) -> Array:
    """1 + the place among `names`, 0 for what is not among them."""
    code_of = {name: 1 + place for place, name in enumerate(names)}
    encoded = values.combine_chunks().dictionary_encode()
    codes = np.array([code_of.get(name, 0) for name in encoded.dictionary.to_pylist()], np.uint16)
    return codes[encoded.indices.to_numpy()]


def _narrow(values: Array, kind: type[np.unsignedinteger[Any]]) -> Array:
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) <= np.iinfo(kind).max:
        raise DataError(f"{FILE}: values reach from {values.min()} to {values.max()}; is it the right file?")
    return values.astype(kind)


SOURCE = Source(
    name="flights",
    title="US flights, January to June 2001",
    description=(
        "Three million flights; the label says whether one arrived at least 15 minutes late (21 %). Cut by time:"
        " training up to 15 May, validation the rest of May, test June. The task is posed at take-off."
    ),
    licence="US government record (public domain); package vega-datasets: BSD-3-Clause",
    url="https://www.transtats.bts.gov/",
    package=Package(
        "npm",
        "vega-datasets",
        "3.2.1",
        "6f72fda460a9863fae5fcb32f85bcd49e1761fdea6dc6cf9f4962472881cc5a3",
        18,
    ),
    files=(FILE,),
    build=build,
    rows={"train": 2_232_008, "validation": 265_764, "test": 502_228},
)
