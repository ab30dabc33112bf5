"""What a spec may choose from: `codistill methods`, `codistill recipes`."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.cli.exits import Exit
from jobs.cli.output import Format, emit, emit_data, say, table

Output = Annotated[Format, typer.Option("-o", "--output", help="How to print")]


def methods(output: Output = Format.TABLE) -> int:
    """How models can teach each other: names for `method.kind`, the idea, the paper."""
    from jobs.offered import offered_methods

    found = offered_methods()
    if output is Format.TABLE:
        emit(table(("METHOD", "PAPER", "IDEA"), [(offer.name, offer.paper, offer.idea) for offer in found]))
        say("what each can be told, with defaults: codistill methods -o yaml")
    else:
        emit_data([offer.as_json() for offer in found], output)
    return Exit.DONE


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
