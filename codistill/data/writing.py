"""Making a data set: tables in, a directory of Parquet files and its description out. Imports no torch."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from codistill.data.card import (
    CARD_FILE,
    PARTS,
    Card,
    Column,
    FileEntry,
    Origin,
    Part,
    SplitEntry,
    content_digest,
    file_digest,
)
from codistill.data.catalog import Dataset, open_dataset
from codistill.data.home import DataError
from codistill.data.layouts import Layout
from codistill.run_dir import checked_id, write_json

SAMPLE_ID = Column(type="int64", meaning="names the sample for ever: train first, then validation, then test")


@dataclass(frozen=True)
class Description:
    """What a data set says about itself beside what is in it."""

    name: str
    title: str
    description: str
    licence: str
    source: Origin


@dataclass(frozen=True)
class Written:
    """What `write_dataset` did."""

    dataset: Dataset
    new: bool
    """False when the same content was there already."""


def write_dataset(home: Path, description: Description, layout: Layout) -> Written:
    """Write `<home>/<name>/`, whole or not at all; the rows get their `sample_id`.

    The same rows give the same digest, with the same version of pyarrow. Raises `DataError` when another data set has
    the name, the columns are not those described, or the disk refuses.
    """
    directory = home / checked_id(description.name)
    temporary = home / f".{description.name}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        card = _write(temporary, description, layout)
        return _put_in_place(temporary, directory, card)
    except OSError as error:
        raise DataError(
            f"cannot write {directory}: {error.strerror or error}; is there room and permission?"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(directory: Path, description: Description, layout: Layout) -> Card:
    splits: dict[Part, SplitEntry] = {}
    files: dict[str, FileEntry] = {}
    first_id = 0
    for part in PARTS:
        table = _with_ids(layout.tables[part], layout, first_id)
        name = f"{part}-00000.parquet"
        path = directory / name
        pq.write_table(table, path, row_group_size=layout.row_group_rows, compression="zstd", write_statistics=False)
        files[name] = FileEntry(bytes=path.stat().st_size, sha256=file_digest(path))
        last_id = first_id + len(table) - 1
        splits[part] = SplitEntry(
            files=(name,), rows=len(table), first_id=first_id, last_id=last_id, row_group_rows=layout.row_group_rows
        )
        first_id = last_id + 1
    card = Card(
        name=description.name,
        title=description.title,
        description=description.description,
        source=description.source,
        licence=description.licence,
        columns={"sample_id": SAMPLE_ID, **layout.columns},
        splits=splits,
        files=files,
        facts=dict(layout.facts),
        digest=content_digest(files, splits, layout.facts),
    )
    write_json(directory / CARD_FILE, card.model_dump(mode="json"))
    return card


def _with_ids(table: pa.Table, layout: Layout, first_id: int) -> pa.Table:
    described = {name: column.type for name, column in layout.columns.items()}
    given = {field.name: str(field.type) for field in table.schema}
    if given != described:
        raise DataError(f"the columns of the data are {given}, described are {described}; make them agree")
    ids = pa.array(np.arange(first_id, first_id + len(table), dtype=np.int64))
    return table.add_column(0, pa.field("sample_id", pa.int64()), ids)


def _put_in_place(temporary: Path, directory: Path, card: Card) -> Written:
    if directory.exists():
        there = open_dataset(card.name, directory)
        if there.digest != card.digest:
            raise DataError(
                f"{directory} holds another data set '{card.name}' (digest {there.digest[:12]}, this one"
                f" {card.digest[:12]}); remove it first, and mind that runs on the two cannot be compared"
            )
        if not there.problems():
            return Written(there, new=False)
        shutil.rmtree(directory)
    temporary.rename(directory)
    return Written(Dataset(card.name, directory, card), new=True)
