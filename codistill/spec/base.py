"""What all configuration types have in common."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"

OperatorName = Annotated[str, Field(pattern=NAME_PATTERN)]
"""A name that whoever operates the machine has given to something: a spec holds names, never paths."""

Divergence = Literal["cross_entropy", "kl", "reverse_kl", "logit_regression"]
"""How far a student is from its teachers. `cross_entropy` and `kl` (teachers first) pull with the same gradient, and
`kl` is 0 where they agree; `reverse_kl` (student first) seeks one of the teachers' modes; `logit_regression` is what
`kl` tends to with rising temperature."""


class Spec(BaseModel):
    """Base of every configuration type: frozen, strictly typed, closed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """With the docstrings of the fields. Pydantic could read them when it makes a type, which takes as long as all
        else about it; but nothing wants them except the schema."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, docstring in docstrings_of(cls).items():
            if name in properties:
                properties[name].setdefault("description", docstring)
        return schema


@functools.cache
def docstrings_of(cls: type[BaseModel]) -> dict[str, str]:
    """Of the fields of a type, those that have one; none of a type whose source is not there."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, BaseModel) and base.__module__ != BaseModel.__module__:
            with suppress(OSError, TypeError):
                (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
                assert isinstance(definition, ast.ClassDef)
                found |= dict(_documented(definition.body))
    return {name: docstring for name, docstring in found.items() if name in cls.model_fields}


def _documented(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, following in pairwise(body):
        match field, following:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str() as docstring)):
                yield name, inspect.cleandoc(docstring)
            case _:
                pass
