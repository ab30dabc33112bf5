"""`Study`: several arms, each a job that is repeated with other seeds. The file that `codistill study` is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError, model_validator

from codistill.spec.base import Spec
from codistill.spec_errors import Problem, SpecError
from codistill.spec_files import read_table

ArmName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,23}$")]
"""Short, since ids of jobs are made of it."""


class Study(Spec):
    """What is trained, how often, and what is set against what."""

    name: ArmName
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(min_length=1, max_length=64)
    """Each arm is trained once with each; differences are paired by them."""
    base: dict[str, JsonValue] = Field(default={}, max_length=64)
    """The part of a job's spec that all arms share."""
    arms: dict[ArmName, dict[str, JsonValue]] = Field(min_length=1, max_length=32)
    """By name, what goes over `base`: tables are merged key by key, what gets another `kind` is replaced."""
    grid: dict[ArmName, dict[str, Annotated[tuple[JsonValue, ...], Field(min_length=1, max_length=16)]]] = Field(
        default={}, max_length=32
    )
    """For an arm, values to try of a setting, named by its path (`"method.weight"`). Every combination is trained with
    every seed; the one of the lowest mean log loss on validation stands for the arm, and it alone is scored on the
    test set."""
    baseline: ArmName | None = None
    """What the others are set against; left out, an arm named `solo`, else the first."""
    ensemble_of: tuple[ArmName, ...] = ()
    """Arms whose averaged predictions are scored as well."""
    unequal: Literal["refuse", "name"] = "refuse"
    """What becomes of an arm that sees more than 5 % more or fewer samples than the baseline, or takes as many more or
    fewer floating-point operations: the study is refused, or goes on and names it beside its figures."""

    @model_validator(mode="after")
    def _names_are_arms(self) -> Study:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds names one twice: {list(self.seeds)}; each arm is trained once with each")
        named = {"grid": tuple(self.grid), "ensemble_of": self.ensemble_of}
        named["baseline"] = () if self.baseline is None else (self.baseline,)
        for key, arms in named.items():
            for arm in arms:
                if arm not in self.arms:
                    raise ValueError(f"{key} names '{arm}', which is no arm; arms are {', '.join(self.arms)}")
        return self

    @property
    def set_against(self) -> str:
        """The arm that the others are set against."""
        return self.baseline or ("solo" if "solo" in self.arms else next(iter(self.arms)))


def load_study(path: Path) -> Study:
    """The study in a .toml, .yaml or .json file. Raises `SpecError` for a bad one."""
    return parse_study(read_table(path))


def parse_study(table: Any) -> Study:
    """Raises `SpecError` with one `Problem` per fault."""
    try:
        return Study.model_validate_json(json.dumps(table, allow_nan=False))
    except TypeError as error:  # of TOML's dates
        raise SpecError([Problem("", f"a study holds JSON values only: {error}")]) from None
    except ValidationError as error:
        raise SpecError(
            [
                Problem(".".join(map(str, detail["loc"])), detail["msg"].removeprefix("Value error, "))
                for detail in error.errors()
            ]
        ) from None
