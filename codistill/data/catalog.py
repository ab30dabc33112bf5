"""Data sets and models by name: what is imported, and what an operator has registered. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from codistill.data.card import CARD_FILE, Card, Part, SplitEntry, content_digest, file_digest, read_card
from codistill.data.home import DataError, data_home
from codistill.run_dir import checked_id, read_json, write_json

IMPORTABLE = ("fashion-mnist", "gcide", "flights")
"""Names that `codistill data import` knows."""
MODEL_FILES = ("config.json", "model.safetensors", "manifest.json")
Kind = Literal["data", "models"]


@dataclass(frozen=True)
class Dataset:
    """A data set that is there: its directory, and what it says about itself."""

    name: str
    directory: Path
    card: Card

    @property
    def digest(self) -> str:
        return self.card.digest

    def fact(self, key: str) -> JsonValue:
        """Raises `DataError` when the data set does not state it."""
        if key not in self.card.facts:
            raise DataError(
                f"data set '{self.name}' does not state '{key}' among its facts in {CARD_FILE}; add it there"
            )
        return self.card.facts[key]

    def split(self, name: Part) -> SplitEntry:
        if name not in self.card.splits:
            raise DataError(
                f"data set '{self.name}' has no split '{name}', only {', '.join(self.card.splits)}; choose another"
            )
        return self.card.splits[name]

    def paths(self, name: Part) -> tuple[Path, ...]:
        """The Parquet files of a split, in the order of their rows."""
        return tuple(self.directory / file for file in self.split(name).files)

    def problems(self) -> list[str]:
        """What disagrees with the description, read byte by byte; empty for a data set that is whole."""
        found = [self._problem(name) for name in self.card.files]
        if content_digest(self.card.files, self.card.splits, self.card.facts) != self.card.digest:
            found.append(f"{CARD_FILE}: the digest is not that of the files, splits and facts it lists")
        return [problem for problem in found if problem]

    def _problem(self, name: str) -> str | None:
        path, entry = self.directory / name, self.card.files[name]
        if not path.is_file():
            return f"{name} is missing"
        return None if file_digest(path) == entry.sha256 else f"{name} has been changed"


def open_dataset(name: str, directory: Path) -> Dataset:
    """The data set in `directory`; raises `DataError` when there is none."""
    return Dataset(name, directory, read_card(directory))


def find_dataset(name: str, home: Path | None = None) -> Dataset:
    """The data set of this name. Raises `DataError`, which says how to get it, when there is none."""
    home = data_home() if home is None else home
    directory = home / checked_id(name)
    if (directory / CARD_FILE).exists():
        return open_dataset(name, directory)
    registered = registry(home)["data"].get(name)
    if registered is not None:
        return open_dataset(name, Path(registered))
    if name in IMPORTABLE:
        raise DataError(f"data set '{name}' is not in {home}; to have it: codistill data import {name}")
    raise DataError(
        f"there is no data set '{name}' in {home}; a directory that holds one is given the name by:"
        f" codistill register data {name} DIRECTORY (and {', '.join(IMPORTABLE)} by: codistill data import NAME)"
    )


def find_model(name: str, home: Path | None = None) -> Path:
    """The directory of the model export that is registered under this name; raises `DataError`."""
    home = data_home() if home is None else home
    location = registry(home)["models"].get(checked_id(name))
    if location is None:
        raise DataError(f"there is no model '{name}'; name an export directory: codistill register model {name} DIR")
    return _checked_model(Path(location))


def list_datasets(home: Path | None = None) -> tuple[list[Dataset], list[str]]:
    """All data sets by name, and a sentence for each that cannot be read."""
    home = data_home() if home is None else home
    places = {path.parent.name: path.parent for path in home.glob(f"[a-z0-9]*/{CARD_FILE}")}
    places = {name: Path(location) for name, location in registry(home)["data"].items()} | places
    found: list[Dataset] = []
    problems: list[str] = []
    for name, directory in sorted(places.items()):
        try:
            found.append(open_dataset(name, directory))
        except DataError as error:
            problems.append(f"{name}: {error}")
    return found, problems


def register(kind: Kind, name: str, location: Path, home: Path | None = None) -> Path:
    """Give `name` to a data set or model export elsewhere; the name may be moved later. Its absolute path.

    Raises `DataError` when there is no such thing, or the name is that of an imported data set.
    """
    home = data_home() if home is None else home
    location = location.expanduser().absolute()
    if kind == "models":
        _checked_model(location)
    else:
        read_card(location)
        if (home / checked_id(name) / CARD_FILE).exists() and location != home / name:
            raise DataError(f"'{name}' is an imported data set in {home}; choose another name")
    known = registry(home)
    known[kind][checked_id(name)] = str(location)
    write_json(home / "registry.json", {"format_version": 1, **known})
    return location


def registry(home: Path) -> dict[Kind, dict[str, str]]:
    """Registered names and their directories."""
    try:
        read = read_json(home / "registry.json") or {}
        return {"data": dict(read.get("data", {})), "models": dict(read.get("models", {}))}
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{home / 'registry.json'} cannot be read: {error}; correct or remove it") from None


def _checked_model(location: Path) -> Path:
    missing = [name for name in MODEL_FILES if not (location / name).is_file()]
    if missing:
        raise DataError(
            f"{location} is not a model export: {', '.join(missing)} missing; name one that a run left in export/"
        )
    return location
