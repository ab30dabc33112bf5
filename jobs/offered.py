"""What a spec may choose from, told from the spec's types and the files of the methods; nothing of it is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import codistill
from codistill.spec import Installed, Method, Recipe

_METHODS = Path(codistill.__file__).parent / "methods"
_CITED = re.compile(r"arXiv \d|\b(19|20)\d\d\b")
RECIPES_GROUP = "codistill.recipes"


@dataclass(frozen=True)
class Offer:
    """One thing that a spec can name."""

    name: str
    idea: str
    """One sentence."""
    paper: str | None
    """Authors, where, when."""
    spec: Mapping[str, str]
    """What a spec says to choose it."""
    defaults: Mapping[str, Any]
    """Of its options; those that have none must be given."""
    options: Mapping[str, Any]
    """The JSON Schema of all that it can be told."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@cache
def offered_methods() -> tuple[Offer, ...]:
    """What `method.kind` may be."""
    return tuple(_offer(choice, cited(method_docstring(_kind(choice)))) for choice in _of(Method))


@cache
def offered_recipes() -> tuple[Offer, ...]:
    """What `recipe.kind` may be, and after it, what `recipe.name` may be where the kind is 'installed'."""
    entries = sorted(metadata.entry_points(group=RECIPES_GROUP), key=lambda entry: entry.name)
    return (*map(_offer, _of(Recipe)), *map(_installed, entries))


def _offer(choice: Any, paper: str | None = None) -> Offer:
    schema, kind = choice.model_json_schema(), _kind(choice)
    # Built without a check: what has no default is then left out.
    defaults = choice.model_construct().model_dump(mode="json", exclude={"kind"})
    return Offer(kind, first_sentence(choice.__doc__ or ""), paper, {"kind": kind}, defaults, schema)


def _installed(entry: metadata.EntryPoint) -> Offer:
    package = entry.dist.name if entry.dist else entry.module
    kind = _kind(Installed)
    return replace(
        _offer(Installed),
        name=f"{kind}: {entry.name}",
        idea=f"From the package {package}.",
        spec={"kind": kind, "name": entry.name},
    )


def first_sentence(text: str) -> str:
    """Of a docstring, in one line."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    end = re.search(r"(?<!al)\.( [A-Z`]|$)", paragraph)
    return paragraph if end is None else paragraph[: end.start() + 1]


def cited(text: str) -> str | None:
    """Who wrote what a method's docstring begins with: what follows its title, if that names a year or an archive."""
    first = " ".join(text.split("\n\n")[0].split()).removesuffix(".")
    _, colon, rest = first.partition(": ")
    return rest if colon and _CITED.search(rest) else None


def method_docstring(kind: str) -> str:
    """What the file of a method says of it."""
    tree = ast.parse((_METHODS / f"{kind}.py").read_text(encoding="utf-8"))
    return ast.get_docstring(tree) or ""


def method_choices() -> dict[str, Any]:
    """The spec's type of each method, by its kind."""
    return {_kind(choice): choice for choice in _of(Method)}


def _of(union: Any) -> tuple[Any, ...]:
    """The members of an annotated union."""
    return get_args(get_args(union)[0])


def _kind(choice: Any) -> str:
    return str(choice.model_fields["kind"].default)
