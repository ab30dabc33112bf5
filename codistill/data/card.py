"""What a data set says about itself: `dataset.json`. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from codistill.data.home import DataError

CARD_FILE = "dataset.json"
FORMAT_VERSION = 1

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
"""The splits of a data set, in the order in which their sample ids follow each other."""

FileName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*\.parquet$")]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Column(_Closed):
    """One column of every split's files."""

    type: str
    """As Arrow calls it."""
    meaning: str
    unit: str | None = None


class Origin(_Closed):
    """Where the data came from."""

    package: str | None = None
    version: str | None = None
    path: str | None = None
    """The file or directory that was imported, when it was given by path."""
    url: str | None = None


class FileEntry(_Closed):
    """One Parquet file."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class SplitEntry(_Closed):
    """One split: its samples have the ids `first_id` up to `last_id`, row after row through its files."""

    files: tuple[FileName, ...] = Field(min_length=1, strict=False)
    rows: int = Field(ge=0)
    first_id: int
    last_id: int
    row_group_rows: int = Field(ge=1)
    """Rows of each row group but the last of a file."""


class Card(_Closed):
    """All of `dataset.json`."""

    format_version: Literal[1] = FORMAT_VERSION
    name: str
    title: str
    description: str
    source: Origin
    licence: str
    columns: dict[str, Column]
    splits: dict[Part, SplitEntry]
    files: dict[FileName, FileEntry]
    facts: dict[str, JsonValue] = {}
    """What a recipe needs to know before it reads a row: shapes, classes, categories, means."""
    digest: str

    @property
    def rows(self) -> int:
        return sum(split.rows for split in self.splits.values())

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


def content_digest(
    files: Mapping[str, FileEntry], splits: Mapping[Part, SplitEntry], facts: Mapping[str, JsonValue]
) -> str:
    """SHA-256 over the files' digests, what the splits are made of, and the facts: all that training depends on."""
    content: dict[str, Any] = {
        "files": {name: entry.sha256 for name, entry in files.items()},
        "splits": {name: entry.model_dump(mode="json") for name, entry in splits.items()},
        "facts": dict(facts),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_card(directory: Path) -> Card:
    """Raises `DataError` when `directory` holds no data set, or one of a format that this version cannot read."""
    path = directory / CARD_FILE
    try:
        return Card.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{directory} is not a data set: there is no {CARD_FILE} in it; name one that has it") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check its owner and mode") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{path} is not a description of format {FORMAT_VERSION}: {where}: {first['msg']}; correct it"
        ) from None


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
