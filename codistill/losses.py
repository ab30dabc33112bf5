"""Losses: pure functions of tensors.

One convention throughout: sum over classes, mean over all positions, softmax in float32 at least, even under autocast.
A target is given as log-probabilities, which are logits to every function here; it is detached unless `through` says
otherwise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-probability of `labels` [...] under `logits` [..., classes]; a scalar."""
    return F.cross_entropy(_flat(logits), labels.reshape(-1))


def soft_cross_entropy(
    target_log_probabilities: Tensor, logits: Tensor, *, temperature: float = 1.0, through: bool = False
) -> Tensor:
    """T^2 * CE(target, softmax(logits / T)): the soft loss of Hinton et al. 2015 (arXiv 1503.02531), a scalar.

    `target_log_probabilities` [..., classes] are those at temperature T already. The gradient in the logits is
    T * (softmax(logits / T) - target) / positions, the same as that of `kl_divergence`.
    """
    target = _target(target_log_probabilities, through).exp()
    log_student = F.log_softmax(_flat(logits) / temperature, dim=-1)
    return -(target * log_student).sum(-1).mean() * temperature**2


def kl_divergence(
    target_log_probabilities: Tensor, logits: Tensor, *, temperature: float = 1.0, through: bool = False
) -> Tensor:
    """T^2 * KL(target || softmax(logits / T)), a scalar: `soft_cross_entropy` less the target's entropy."""
    log_target = _target(target_log_probabilities, through)
    log_student = F.log_softmax(_flat(logits) / temperature, dim=-1)
    return (log_target.exp() * (log_target - log_student)).sum(-1).mean() * temperature**2


def _target(log_probabilities: Tensor, through: bool) -> Tensor:
    flat = _flat(log_probabilities)
    return flat if through else flat.detach()


def _flat(values: Tensor) -> Tensor:
    # float32 at least: half precision is widened, float64 stays.
    return values.to(torch.promote_types(values.dtype, torch.float32)).reshape(-1, values.shape[-1])
