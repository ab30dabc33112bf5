"""What a spec may choose from: `codistill methods`, `codistill recipes`."""

from __future__ import annotations

import difflib
from typing import Annotated

import typer

from jobs.cli.exits import CommandError, Exit
from jobs.cli.output import Format, emit, emit_data, say, table

Output = Annotated[Format, typer.Option("-o", "--output", help="How to print")]


def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One of them, whole")] = None,
    output: Output = Format.TABLE,
) -> int:
    """How models can teach each other: names for `method.kind`, the idea, the paper; of one, its formulas, what it
    needs and costs, and its options."""
    from jobs.method_page import section
    from jobs.offered import offered_methods

    found = [offer for offer in offered_methods() if name in (None, offer.name)]
    if not found:
        known = [offer.name for offer in offered_methods()]
        raise CommandError(_unknown(str(name), known), Exit.USAGE)
    if output is Format.TABLE and name is not None:
        emit(section(found[0]).rstrip())
    elif output is Format.TABLE:
        emit(table(("METHOD", "PAPER", "IDEA"), [(offer.name, offer.paper, offer.idea) for offer in found]))
        say("one of them, with formulas, needs, cost and options: codistill methods NAME")
    else:
        emit_data([offer.as_json() for offer in found], output)
    return Exit.DONE


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"there is no method '{name}'; " + (f"did you mean '{near[0]}'?" if near else f"use {', '.join(known)}")


def recipes(output: Output = Format.TABLE) -> int:
    """What can be trained: names for `recipe.kind`, and the recipes that installed packages bring."""
    from jobs.offered import offered_recipes

    found = offered_recipes()
    if output is Format.TABLE:
        emit(table(("RECIPE", "WHAT"), [(offer.name, offer.idea) for offer in found]))
        say("a recipe of your own: docs/design.md, section 7; what each can be told: codistill recipes -o yaml")
    else:
        emit_data([offer.as_json() for offer in found], output)
    return Exit.DONE
