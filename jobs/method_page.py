"""A method as a page: what its file says of it, what it needs, its options, what a step of it costs.

`python -P -m jobs.method_page > docs/methods.md` writes all of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from codistill.spec.offers import stages_needed
from jobs import examples
from jobs.offered import Offer, method_choices, method_docstring, offered_methods

_EXAMPLES = Path(examples.__file__).parent
_PLAIN = {"solo": "digits-solo", "codistillation": "digits-pair"}
_COSTS = Path(__file__).parent / "method_costs.json"
HEAD = """# Methods

One section each, made from the code by `python -P -m jobs.method_page`; `codistill methods NAME` prints the same. The
cost of a step is that of the example's last phase, as a multiple of plain training of the same recipe: in operations of
floating point, of one replica with its teachers; and in seconds, as `make methods` measured them on two cores. Where a
small student has a large teacher the two differ: what a small network takes is hardly its operations.
"""


@dataclass(frozen=True)
class Cost:
    """Of a step, as a multiple of one of plain training."""

    predicted: float
    """Floating-point operations of one replica."""
    measured: float | None
    """Seconds."""


@cache
def costs() -> Mapping[str, Cost]:
    """By method, as `make methods` has written them down; those that have no example have none."""
    return {name: Cost(**value) for name, value in json.loads(_COSTS.read_text())["methods"].items()}


def section(offer: Offer) -> str:
    """One method, as Markdown."""
    title, _, rest = method_docstring(offer.name).partition("\n\n")
    options = [
        _option(key, value, offer.defaults) for key, value in offer.options["properties"].items() if key != "kind"
    ]
    table = ["| option | default | |", "|---|---|---|", *options] if options else []
    parts = [f"## `{offer.name}`", title, rest, f"*Needs*: {needs(offer.name)}.", _cost(offer.name), "\n".join(table)]
    example = example_of(offer.name)
    if example is not None:
        parts.append(f"Example: `jobs/examples/{example.relative_to(_EXAMPLES)}`.")
    return "\n\n".join(filter(None, parts)) + "\n"


def page() -> str:
    """All of them."""
    return "\n".join([HEAD, *map(section, offered_methods())])


def needs(kind: str) -> str:
    """What a recipe has to offer, and how many replicas there have to be."""
    choice = method_choices()[kind]
    stages = stages_needed(choice.model_construct())
    wanted = [f"a model of at least {stages} stage{'s' if stages > 1 else ''}" if stages else "any model"]
    if kind in {"codistillation", "local_sgd", "diloco"}:
        wanted.append("at least two replicas")
    if "teacher" in choice.model_fields:
        wanted.append("a teacher: trained first, of a job that has ended, or registered")
    return "; ".join(wanted)


def example_of(kind: str) -> Path | None:
    """The spec that shows it."""
    path = _EXAMPLES / f"{_PLAIN.get(kind) or 'methods/' + kind.replace('_', '-')}.toml"
    return path if path.exists() else None


def _cost(kind: str) -> str:
    cost = costs().get(kind)
    if cost is None:
        return ""
    measured = "not measured in seconds" if cost.measured is None else f"{cost.measured:.2f} in seconds"
    return f"*Cost of a step*: {cost.predicted:.2f} in operations, {measured}."


def _option(key: str, value: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    default = f"`{json.dumps(defaults[key])}`" if key in defaults else "must be given"
    words = " ".join(str(value.get("description", "")).split()).replace("|", "\\|")
    return f"| `{key}` | {default.replace('|', chr(92) + '|')} | {words} |"


if __name__ == "__main__":
    sys.stdout.write(page())
