"""From what teachers and student say to the term that pulls the student: one choice for all loops and methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from torch import Tensor

from codistill import combine, losses
from codistill.spec import Divergence


@dataclass(frozen=True)
class Pulled:
    """The term, and what it pulls towards."""

    loss: Tensor
    """A scalar, unweighted."""
    target: Tensor
    """Log-probabilities [N, classes], at the temperature; without gradient."""


def pull(divergence: Divergence, teachers: Sequence[Tensor], student: Tensor, *, temperature: float = 1.0) -> Pulled:
    """`divergence` between the mean of the teachers' distributions at the temperature (of their logits, for
    `logit_regression`) and the student's. `teachers`: m >= 1 logits [N, classes]; `student`: logits [N, classes]."""
    if divergence == "logit_regression":
        logits = combine.mean_logits(teachers).detach()
        return Pulled(losses.logit_regression(logits, student), logits.log_softmax(-1))
    target = combine.mean_probabilities(teachers, temperature=temperature).detach()
    match divergence:
        case "cross_entropy":
            loss = losses.soft_cross_entropy(target, student, temperature=temperature)
        case "kl":
            loss = losses.kl_divergence(target, student, temperature=temperature)
        case "reverse_kl":
            loss = losses.reverse_kl_divergence(target, student, temperature=temperature)
        case _:
            assert_never(divergence)
    return Pulled(loss, target)
