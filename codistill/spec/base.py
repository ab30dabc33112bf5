"""What all configuration types have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"

OperatorName = Annotated[str, Field(pattern=NAME_PATTERN)]
"""A name that whoever operates the machine has given to something: a spec holds names, never paths."""

Divergence = Literal["cross_entropy", "kl", "reverse_kl", "logit_regression"]
"""How far a student is from its teachers. `cross_entropy` and `kl` (teachers first) pull with the same gradient, and
`kl` is 0 where they agree; `reverse_kl` (student first) seeks one of the teachers' modes; `logit_regression` is what
`kl` tends to with rising temperature."""


class Spec(BaseModel):
    """Base of every configuration type: frozen, strictly typed, closed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
