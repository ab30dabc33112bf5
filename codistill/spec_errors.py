"""From bytes or mappings to a `JobSpec`, or to errors that say what, where, and what would be right."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from codistill.spec import JobSpec

MAX_SPEC_BYTES = 256 * 1024
MOST_PROBLEMS = 100
"""That are told of one spec: nobody mends more at once, and an answer must not be many times its question."""
_LONGEST_KEY = 100
"""That is looked for among those that are known, and shown whole."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a spec."""

    path: str
    """Dotted path of the key, e.g. `training.steps`; empty for the spec as a whole."""
    message: str
    allowed: tuple[str, ...] = ()
    """What would be accepted there, where that is a short list."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class SpecError(ValueError):
    """A spec that cannot be accepted; `problems` lists every reason found."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


def parse_spec(data: bytes | str | Mapping[str, Any]) -> JobSpec:
    """Check JSON text or a mapping and return the spec.

    Raises `SpecError` with one `Problem` per fault, and no more than `MOST_PROBLEMS` of them. Everything goes through
    JSON, so a spec means the same whether it came from a file, over HTTP or out of Python.
    """
    if isinstance(data, Mapping):
        try:
            data = json.dumps(data, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise SpecError([Problem("", f"a spec holds JSON values only: {error}")]) from None
    if len(data) > MAX_SPEC_BYTES:
        raise SpecError([Problem("", f"the spec has {len(data):,} bytes; at most {MAX_SPEC_BYTES:,} are accepted")])
    try:
        return JobSpec.model_validate_json(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        problems = [_problem(detail) for detail in found[:MOST_PROBLEMS]]
        if len(found) > MOST_PROBLEMS:
            problems.append(Problem("", f"and {len(found) - MOST_PROBLEMS:,} more like these; mend these first"))
        raise SpecError(problems) from None


def _problem(detail: ErrorDetails) -> Problem:
    annotation, fields, path = _locate(detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_key(path, fields)
        case "union_tag_invalid":
            allowed = tuple(part.strip().strip("'") for part in str(context["expected_tags"]).split(","))
            return Problem(
                f"{path}.kind",
                _nearest(f"unknown kind '{context['tag']}'", str(context["tag"]), allowed),
                allowed,
            )
        case "union_tag_not_found":
            allowed = _kinds(annotation)
            return Problem(path, f"needs a 'kind', one of {', '.join(allowed)}", allowed)
        case "literal_error":
            allowed = tuple(
                part.strip().strip("'") for part in str(context["expected"]).replace(" or ", ", ").split(",")
            )
            return Problem(path, message, allowed)
        case _:
            return Problem(path, message)


def _unknown_key(path: str, fields: dict[str, Any]) -> Problem:
    key = path.rpartition(".")[2]
    if len(key) > _LONGEST_KEY:
        return Problem(f"{path[:_LONGEST_KEY]}…", f"unknown key of {len(key):,} letters", tuple(fields))
    return Problem(path, _nearest("unknown key", key, tuple(fields)), tuple(fields))


def _nearest(message: str, word: str, allowed: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word, allowed, n=1)
    return f"{message}; did you mean '{near[0]}'?" if near else f"{message}; known here: {', '.join(allowed)}"


def _locate(loc: tuple[int | str, ...]) -> tuple[Any, dict[str, Any], str]:
    """The annotation at `loc`, the fields known beside it, and `loc` as the user wrote it (without union tags)."""
    annotation: Any = JobSpec
    fields: dict[str, Any] = _fields(JobSpec)
    shown: list[str] = []
    for part in loc:
        member = _member(annotation, part)
        if member is not None:  # a union's tag, not a key
            annotation = member
            fields = _fields(member)
            continue
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            fields = _fields(annotation)
        shown.append(str(part))
        annotation = _item(annotation) if isinstance(part, int) else fields.get(str(part))
    return annotation, fields, ".".join(shown)


def _item(annotation: Any) -> Any:
    """What a tuple of any length holds."""
    item, *_ = get_args(annotation) or (None,)
    return get_args(item)[0] if get_origin(item) is Annotated else item


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return {name: field.annotation for name, field in model.model_fields.items()}


def _member(annotation: Any, tag: int | str) -> type[BaseModel] | None:
    for model in _models(annotation):
        if tag in _tags(model):
            return model
    return None


def _models(annotation: Any) -> list[type[BaseModel]]:
    return [m for m in get_args(annotation) if isinstance(m, type) and issubclass(m, BaseModel)]


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    kind = model.model_fields.get("kind")
    return () if kind is None else get_args(kind.annotation)


def _kinds(annotation: Any) -> tuple[str, ...]:
    return tuple(str(tag) for model in _models(annotation) for tag in _tags(model))
