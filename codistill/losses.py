"""Losses: pure functions of tensors.

One convention throughout: sum over classes, mean over all positions, softmax in float32 at least, even under autocast.
A target is given as log-probabilities, which are logits to every function here; it is detached unless `through` says
otherwise. Labels are classes; positions whose label is `IGNORED` count in no mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""The label of a position that is not learned from; torch's own convention."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-probability of `labels` [...] under `logits` [..., classes]; a scalar."""
    return F.cross_entropy(_flat(logits), labels.reshape(-1), ignore_index=IGNORED)


def nats(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each position its term of `cross_entropy`, [...], 0 where there is no label."""
    each = F.cross_entropy(_flat(logits), labels.reshape(-1), ignore_index=IGNORED, reduction="none")
    return each.reshape(labels.shape)


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, *, epsilon: float) -> Tensor:
    """CE(q, softmax(logits)) of labels [...] and logits [..., classes], a scalar: label smoothing (Szegedy et al. 2016,
    arXiv 1512.00567).

    q is 1 - epsilon on the label and epsilon / (classes - 1) on each other class, so that epsilon is all that is taken
    off the label. The paper spreads its epsilon over all classes, the label among them; ours is (classes - 1) / classes
    of theirs. Raises `ValueError` when there is no other class.
    """
    if logits.shape[-1] < 2:
        raise ValueError("label smoothing needs at least 2 classes, the logits have 1")
    log_student = F.log_softmax(_flat(logits), dim=-1)
    of_label, known = _of_label(log_student, labels)
    of_others = (log_student.sum(-1) - of_label) / (logits.shape[-1] - 1)
    return -_mean((1 - epsilon) * of_label + epsilon * of_others, known)


def off_label(log_probabilities: Tensor, labels: Tensor, *, heard: Tensor | None = None) -> Tensor:
    """Mean of 1 - p(label) of log-probabilities [..., classes] and labels [...]: the mass that a target takes off the
    label, 0 to 1, a scalar. Samples that `heard` [N] leaves out have no target, and count 0."""
    of_label, known = _of_label(_flat(log_probabilities), labels)
    off = -torch.expm1(of_label)
    if heard is not None:
        off = off * heard.reshape(-1, *(1,) * (labels.dim() - 1)).expand(labels.shape).reshape(-1)
    # Clamped, since rounding may leave a little more than all on the label.
    return _mean(off, known).clamp(0.0, 1.0)


def soft_cross_entropy(
    target_log_probabilities: Tensor,
    logits: Tensor,
    *,
    temperature: float = 1.0,
    through: bool = False,
    shares: Tensor | None = None,
) -> Tensor:
    """T^2 * CE(target, softmax(logits / T)): the soft loss of Hinton et al. 2015 (arXiv 1503.02531), a scalar.

    `target_log_probabilities` [..., classes] are those at temperature T already. The gradient in the logits is
    T * (softmax(logits / T) - target) / positions, the same as that of `kl_divergence`. `shares` [...] is what each
    position counts; left out, 1. The mean is over all positions, whatever they count.
    """
    target = _target(target_log_probabilities, through).exp()
    log_student = F.log_softmax(_flat(logits) / temperature, dim=-1)
    return -_mean_of_shares((target * log_student).sum(-1), shares) * temperature**2


def kl_divergence(
    target_log_probabilities: Tensor,
    logits: Tensor,
    *,
    temperature: float = 1.0,
    through: bool = False,
    shares: Tensor | None = None,
) -> Tensor:
    """T^2 * KL(target || softmax(logits / T)), a scalar: `soft_cross_entropy` less the target's entropy; of a target
    that is estimated by draws, less the entropy of the draws."""
    log_target = _target(target_log_probabilities, through)
    log_student = F.log_softmax(_flat(logits) / temperature, dim=-1)
    return _mean_of_shares((log_target.exp() * (log_target - log_student)).sum(-1), shares) * temperature**2


def reverse_kl_divergence(
    target_log_probabilities: Tensor, logits: Tensor, *, temperature: float = 1.0, shares: Tensor | None = None
) -> Tensor:
    """T^2 * KL(softmax(logits / T) || target), a scalar: goes for one of the target's modes rather than their mean."""
    log_target = _target(target_log_probabilities, through=False)
    log_student = F.log_softmax(_flat(logits) / temperature, dim=-1)
    return _mean_of_shares((log_student.exp() * (log_student - log_target)).sum(-1), shares) * temperature**2


def logit_regression(target_logits: Tensor, logits: Tensor, *, shares: Tensor | None = None) -> Tensor:
    """Mean over positions of |z - z'|^2 / (2 classes), z and z' being `logits` and `target_logits` [..., classes], each
    less its mean: what `kl_divergence` tends to with rising temperature (Hinton et al. 2015, section 2.1). A scalar.

    Logits are centred since a softmax does not see a shift of all of them.
    """
    student, target = (z - z.mean(-1, keepdim=True) for z in (_flat(logits), _target(target_logits, through=False)))
    return _mean_of_shares((student - target).square().sum(-1), shares) / (2 * logits.shape[-1])


def squared_distance(features: Tensor, target: Tensor) -> Tensor:
    """Mean over samples and entries of (features - target)^2, both [N, ..., width], a scalar; the target is detached.
    The hint loss of FitNets (Romero et al. 2015, arXiv 1412.6550) but for its factor 1/2 and its sum over entries."""
    return F.mse_loss(features.float(), target.detach().float())


def _target(log_probabilities: Tensor, through: bool) -> Tensor:
    flat = _flat(log_probabilities)
    return flat if through else flat.detach()


def _of_label(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of values [positions, classes] those at the labels, [positions]; and where there is a label at all."""
    flat = labels.reshape(-1)
    known = flat != IGNORED
    return values.gather(1, flat.masked_fill(~known, 0).unsqueeze(1)).squeeze(1), known


def _mean_of_shares(values: Tensor, shares: Tensor | None) -> Tensor:
    return (values if shares is None else values * shares.reshape(-1)).mean()


def _mean(values: Tensor, known: Tensor) -> Tensor:
    return values.masked_fill(~known, 0.0).sum() / known.sum()


def _flat(values: Tensor) -> Tensor:
    # float32 at least: half precision is widened, float64 stays.
    return values.to(torch.promote_types(values.dtype, torch.float32)).reshape(-1, values.shape[-1])
