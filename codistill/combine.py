"""From the predictions of several teachers to one target.

Every combiner takes the logits (or log-probabilities, which do as well) of m >= 1 teachers, each [N, classes], and
gives the target's log-probabilities [N, classes] at the temperature; `mean_logits` gives logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_probabilities(logits: Sequence[Tensor], *, temperature: float = 1.0, weights: Tensor | None = None) -> Tensor:
    """Logarithm of the mean of the teachers' distributions, weighted by `weights` [m, ...] if given: one for each
    teacher and place, adding up to 1 over the teachers.

    Probabilities are averaged, not logits: for forward KL this gives the student the mean of the per-teacher gradients,
    and a class that one teacher rules out is not ruled out by all (Anil et al. 2018).
    """
    each = torch.stack([F.log_softmax(_wide(one) / temperature, dim=-1) for one in logits])
    if weights is not None:
        return torch.logsumexp(each + weights.log().unsqueeze(-1), dim=0)
    return torch.logsumexp(each, dim=0) - math.log(len(logits))


def mean_logits(logits: Sequence[Tensor], *, weights: Tensor | None = None) -> Tensor:
    """Mean of the teachers' logits [..., classes], each less its mean over the classes; the target of regression.
    `weights` are as for `mean_probabilities`."""
    each = torch.stack([_wide(one) for one in logits])
    centred = each - each.mean(-1, keepdim=True)
    return centred.mean(0) if weights is None else (centred * weights.unsqueeze(-1)).sum(0)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
