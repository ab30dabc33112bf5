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


def mean_probabilities(logits: Sequence[Tensor], *, temperature: float = 1.0) -> Tensor:
    """Logarithm of the mean of the teachers' distributions.

    Probabilities are averaged, not logits: for forward KL this gives the student the mean of the per-teacher gradients,
    and a class that one teacher rules out is not ruled out by all (Anil et al. 2018).
    """
    each = torch.stack([F.log_softmax(_wide(one) / temperature, dim=-1) for one in logits])
    return torch.logsumexp(each, dim=0) - math.log(len(logits))


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """Mean of the teachers' logits [N, classes], each less its mean over the classes; the target of regression."""
    each = torch.stack([_wide(one) for one in logits])
    return (each - each.mean(-1, keepdim=True)).mean(0)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
