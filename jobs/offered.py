"""What a spec may choose from, told from the spec's types and the files of the methods; nothing of it is imported."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import codistill
from codistill.spec import Method, Recipe

_METHODS = Path(codistill.__file__).parent / "methods"
_CITED = re.compile(r"arXiv \d|\b(19|20)\d\d\b")
RECIPES_GROUP = "codistill.recipes"


@dataclass(frozen=True)
class Offer:
    """One thing that a spec can name."""

    name: str
    idea: str
    """One sentence."""
    paper: str | None = None
    """Authors, where, when."""


def offered_methods() -> list[Offer]:
    """What `method.kind` may be."""
    return [Offer(_kind(choice), first_sentence(choice.__doc__ or ""), _paper(_kind(choice))) for choice in _of(Method)]


def offered_recipes() -> list[Offer]:
    """What `recipe.kind` may be, and after it, what `recipe.name` may be where the kind is 'installed'."""
    built_in = [Offer(_kind(choice), first_sentence(choice.__doc__ or "")) for choice in _of(Recipe)]
    entries = sorted(metadata.entry_points(group=RECIPES_GROUP), key=lambda entry: entry.name)
    return built_in + [Offer(f"installed: {entry.name}", f"From the package: {entry.value}") for entry in entries]


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


def _paper(kind: str) -> str | None:
    tree = ast.parse((_METHODS / f"{kind}.py").read_text(encoding="utf-8"))
    return cited(ast.get_docstring(tree) or "")


def _of(union: Any) -> tuple[Any, ...]:
    """The members of an annotated union."""
    return get_args(get_args(union)[0])


def _kind(choice: Any) -> str:
    return str(choice.model_fields["kind"].default)
