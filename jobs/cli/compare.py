"""The verb `compare`: finished runs side by side. Needs no service."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from codistill.run_dir import RunDir
from jobs.cli.exits import CommandError, Exit
from jobs.cli.local import Storage, run_dir_of
from jobs.cli.output import Format, emit, emit_data, emit_json, plain


class CompareFormat(StrEnum):
    """How the comparison is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    CSV = "csv"


def compare(
    arms: Annotated[
        list[str],
        typer.Argument(
            metavar="[ARM=]RUN[,RUN]...",
            help="Runs of an arm: directories, or ids in --storage; without ARM=, runs of the same spec are one arm,"
            " whatever their seed",
        ),
    ],
    storage: Storage = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Arm that others are set against [default: solo, else the first]", metavar="ARM"),
    ] = None,
    ensemble_of: Annotated[
        list[str] | None,
        typer.Option(help="Also score averaged predictions of this arm; may be repeated", metavar="ARM"),
    ] = None,
    incumbent: Annotated[
        str | None,
        typer.Option(
            help="A deployed model, against which churn is measured: of a run, or a registered one",
            metavar="RUN[:REPLICA]|NAME",
        ),
    ] = None,
    output: Annotated[CompareFormat, typer.Option("-o", "--output", help="How it is printed")] = CompareFormat.TABLE,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw it into this .png, .svg or .pdf file", metavar="FILE")
    ] = None,
) -> int:
    """Set finished runs side by side: quality, churn between the runs of an arm, cost, differences with intervals."""
    from codistill.compare import ArmError, NothingToCompare
    from codistill.compare import compare as compare_runs

    _check_plot(plot)
    try:
        comparison = compare_runs(
            _arms(arms, storage),
            ensemble_of=ensemble_of or [],
            baseline=baseline,
            incumbent=_incumbent(incumbent, storage),
        )
    except ArmError as error:
        raise CommandError(str(error), Exit.USAGE) from None
    except NothingToCompare as error:
        raise CommandError(str(error), Exit.JOB_NOT_FINISHED) from None
    match output:
        case CompareFormat.TABLE:
            emit("\n".join(map(plain, comparison.as_text().splitlines())))
        case CompareFormat.JSON:
            emit_json(comparison.as_json())
        case CompareFormat.YAML:
            emit_data(json.loads(json.dumps(comparison.as_json())), Format.YAML)
        case CompareFormat.CSV:
            emit(comparison.as_csv().rstrip("\n"))
    if plot is not None:
        from codistill.compare.plots import PlotError, save_plot

        try:
            save_plot(comparison, plot)
        except PlotError as error:
            raise CommandError(str(error), Exit.UNAVAILABLE) from None
    return Exit.DONE


def _arms(words: Sequence[str], storage: Path | None) -> dict[str, list[RunDir]]:
    """Arms that were named, in their order, then those found by spec."""
    from codistill.compare import ArmError, group_by_spec

    named: dict[str, list[RunDir]] = {}
    bare: list[RunDir] = []
    for word in words:
        if Path(word).is_dir():  # its name may hold what separates arms elsewhere
            bare.append(_run_dir(word, storage))
            continue
        name, separator, runs = word.partition("=")
        found = [_run_dir(run, storage) for run in (runs if separator else word).split(",")]
        if not separator:
            bare += found
        elif not name or name in named:
            raise ArmError(f"{word}: name every arm once, and all its runs with it: ARM=RUN,RUN")
        else:
            named[name] = found
    grouped = group_by_spec(bare)
    for name in named.keys() & grouped.keys():
        raise ArmError(f"'{name}' is an arm and also the name in the spec of {grouped[name][0].job_id}; write ARM=RUN")
    return named | grouped


def _incumbent(word: str | None, storage: Path | None) -> tuple[RunDir, str | None] | None:
    if word is None:
        return None
    registered = _registered(word)
    if registered is not None:
        return registered
    run, separator, replica = word.rpartition(":")
    if not separator or Path(word).is_dir():
        return _run_dir(word, storage), None
    return _run_dir(run, storage), replica


def _registered(word: str) -> tuple[RunDir, str] | None:
    """The run and replica of a model that has this name (`codistill register model`); None when none has."""
    from codistill.data.catalog import find_model, registry
    from codistill.data.home import DataError, data_home

    try:
        if word not in registry(data_home())["models"]:
            return None
        location = find_model(word)
        if location.parent.name != "export":
            raise DataError(
                f"model '{word}' is {location}, which is no longer where its run left it (RUN/export/REPLICA); what it"
                " predicts on the test samples stands in the run: name that"
            )
        root = location.parent.parent
        return RunDir(root.parent, root.name), location.name
    except (DataError, ValueError) as error:
        raise CommandError(f"--incumbent: {error}", Exit.UNAVAILABLE) from None


def _run_dir(word: str, storage: Path | None) -> RunDir:
    """A run by its directory, or by its id."""
    if not word:
        raise CommandError("the name of a run is missing; write ARM=RUN[,RUN]...", Exit.USAGE)
    return run_dir_of(word, storage)


def _check_plot(plot: Path | None) -> None:
    if plot is None:
        return
    from codistill.compare.plots import PlotError, PlotsNotInstalled, check_plot

    try:
        check_plot(plot)
    except PlotsNotInstalled as error:
        raise CommandError(str(error), Exit.UNAVAILABLE) from None
    except PlotError as error:
        raise CommandError(str(error), Exit.USAGE) from None
