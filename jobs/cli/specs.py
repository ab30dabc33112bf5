"""Specs on the command line: files, and single settings over them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codistill.lineage import merged
from jobs.cli.exits import CommandError, Exit

if TYPE_CHECKING:
    from codistill.spec import JobSpec

Specs = Annotated[
    list[Path],
    typer.Argument(metavar="SPEC...", help="A .toml, .yaml or .json file; of several, later ones go over earlier ones"),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=JSON", help="E.g. training.steps=2000 or name=longer; as often as needed"),
]


def spec_of(paths: Sequence[Path], settings: Sequence[str] | None) -> JobSpec:
    """What files and settings make together. Raises `SpecError`, and `CommandError` for a setting that is none."""
    from codistill.spec_files import load_spec

    return load_spec(*paths, settings=changes_of(settings))


def changes_of(settings: Sequence[str] | None) -> dict[str, Any]:
    """From `training.steps=2000` and the like to a part of a spec. What is no JSON is taken as text."""
    changes: dict[str, Any] = {}
    for setting in settings or ():
        key, equals, text = setting.partition("=")
        parts = key.split(".")
        if not equals or not all(parts):
            raise CommandError(f"--set {setting!r}: write KEY=VALUE, e.g. --set training.steps=2000", Exit.USAGE)
        try:
            value: Any = json.loads(text)
        except ValueError:
            value = text
        for part in reversed(parts):
            value = {part: value}
        changes = merged(changes, value)
    return changes
