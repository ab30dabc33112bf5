"""From the predictions of several teachers to one target.

Every combiner takes the logits (or log-probabilities, which do as well) of m >= 1 teachers, each [N, classes], and
gives the target's log-probabilities [N, classes] at the temperature; `mean_logits` gives logits, and so do those that
look at the labels: `naive`, `linear`, `min_logit`. At places without a label these give the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from codistill.losses import IGNORED

AddUp = Callable[[Tensor], Tensor]


def of_one(sums: Tensor) -> Tensor:
    """What adds up where the whole batch is here."""
    return sums


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


def naive(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """At each place the logits of the teacher that knows its label best (KDCL-Naive, Guo et al. 2020); of equals the
    first. Logits [..., classes] of labels [...]."""
    above = _above_label(logits, labels)
    return _where_labelled(_picked(above, torch.logsumexp(above, dim=-1).argmin(0)), logits, labels)


def min_logit(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Of each class the least that any teacher puts it above the label (KDCL-MinLogit, Guo et al. 2020): logits
    [..., classes] of labels [...], 0 on the label. No teacher knows a label better than this."""
    return _where_labelled(_above_label(logits, labels).amin(0), logits, labels)


def linear(logits: Sequence[Tensor], labels: Tensor, *, per_place: bool = False, add_up: AddUp = of_one) -> Tensor:
    """The mixture of the teachers' logits that knows the labels best (KDCL-Linear, Guo et al. 2020): logits
    [..., classes] of labels [...]. One mixture for all places together, or one for each.

    Of a batch that is shared out, each with its part calls this at the same time, with an `add_up` that gives the sum
    over all parts of a small float64 tensor; there is one mixture then, for all of them."""
    above = _above_label(logits, labels)
    flat = above.reshape(len(logits), -1, above.shape[-1])
    known = (labels.reshape(-1) != IGNORED).double()
    grouped = flat.movedim(0, 1).double()  # [places, m, classes]
    if per_place:
        alpha = mixture(grouped.unsqueeze(1), torch.ones_like(known).unsqueeze(1))
    else:
        alpha = mixture(grouped.unsqueeze(0), (known / add_up(known.sum()).clamp(min=1)).unsqueeze(0), add_up)
    mixed = (alpha.unsqueeze(-1) * grouped).sum(1).to(above.dtype).reshape(above.shape[1:])
    return _where_labelled(mixed, logits, labels)


LEAST_BARRIER = 1e-9


def mixture(above: Tensor, counts: Tensor, add_up: AddUp = of_one) -> Tensor:
    """For each of G problems the alpha [G, m] >= 0 of sum 1 that minimises sum_n counts_n * logsumexp(alpha^T above_n);
    `above` [G, n, m, classes] and `counts` [G, n] in float64. Of terms that are shared out, `add_up` gives the sums.

    Convex: Newton's steps along the path that a barrier -mu * sum log alpha leads to the optimum as mu falls, so that
    of many optima (networks that say the same) it is the one in their middle.
    """
    alpha = torch.full_like(above[:, 0, :, 0], 1 / above.shape[2])
    fractions = 0.5 ** torch.arange(6, dtype=above.dtype, device=above.device)
    barrier = 0.1
    while barrier > LEAST_BARRIER:
        for _ in range(4):
            step = _newton(above, counts, alpha, barrier, add_up)
            furthest = torch.where(step < 0, -alpha / step, torch.inf).amin(-1, keepdim=True)
            step = step * (0.99 * furthest).clamp(max=1.0)
            tried = alpha + fractions.reshape(-1, 1, 1) * step  # [6, G, m]
            mixed = torch.einsum("kgm,gnmc->kgnc", tried, above)
            values = add_up((counts * torch.logsumexp(mixed, dim=-1)).sum(-1)) - barrier * tried.log().sum(-1)
            alpha = _picked(tried, values.argmin(0))
        barrier /= 100
    return alpha


def _newton(above: Tensor, counts: Tensor, alpha: Tensor, barrier: float, add_up: AddUp) -> Tensor:
    """The step [G, m], of sum 0, to the minimum of the second-order model."""
    said = torch.einsum("gm,gnmc->gnc", alpha, above).softmax(-1)
    means = torch.einsum("gnmc,gnc->gnm", above, said)
    off = above - means.unsqueeze(-1)
    second = torch.einsum("gn,gnc,gnac,gnbc->gab", counts, said, off, off)
    first = (counts.unsqueeze(-1) * means).sum(1)
    sums = add_up(torch.cat([second, first.unsqueeze(1)], dim=1))
    curvature = sums[:, :-1] + torch.diag_embed(barrier / alpha**2)
    slope = sums[:, -1] - barrier / alpha
    both = torch.linalg.solve(curvature, torch.stack([slope, torch.ones_like(slope)], dim=-1))
    return both[..., 1] * (both[..., 0].sum(-1) / both[..., 1].sum(-1)).unsqueeze(-1) - both[..., 0]


def held_out_weights(errors: Tensor) -> tuple[Tensor, int]:
    """Of KDCL-General (Guo et al. 2020): from the mean products of the errors of m networks, C [m, m] with
    C_ij = mean <f_i - t, f_j - t> of distributions f and one-hot labels t, to the weights [m] whose mixture errs least,
    w = C^-1 1 / (1^T C^-1 1), and how many of them were negative.

    Negative weights become 0 and the others grow to the sum of 1. Networks that err alike share theirs evenly.
    """
    errors = errors.double()
    scale = errors.diagonal().mean()
    if not scale > 0:  # none errs
        return torch.full_like(errors[0], 1 / len(errors)), 0
    ridge = 1e-9 * scale * torch.eye(len(errors), dtype=errors.dtype, device=errors.device)
    each = torch.linalg.solve(errors + ridge, torch.ones_like(errors[0]))
    weights = each / each.sum()
    kept = weights.clamp(min=0.0)
    return kept / kept.sum(), int((weights < 0).sum())


def error_products(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Sums over the places of <f_i - t, f_j - t>, [m, m] in float64; see `held_out_weights`. Places that are not
    learned from add nothing."""
    known = labels.reshape(-1) != IGNORED
    each = torch.stack([_wide(one).reshape(-1, one.shape[-1])[known].double().softmax(-1) for one in logits])
    off = each - F.one_hot(labels.reshape(-1)[known], each.shape[-1])
    return torch.einsum("inc,jnc->ij", off, off)


def _above_label(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Logits [m, ..., classes] less that of the label, whose cross-entropy is then their logsumexp."""
    each = torch.stack([_wide(one) for one in logits])
    at = labels.masked_fill(labels == IGNORED, 0).unsqueeze(-1).expand(*each.shape[:-1], 1)
    return each - each.gather(-1, at)


def _picked(values: Tensor, which: Tensor) -> Tensor:
    """Of values [m, ..., n] those of `which` [...], [..., n]."""
    return values.gather(0, which.unsqueeze(-1).expand(values.shape[1:]).unsqueeze(0)).squeeze(0)


def _where_labelled(target: Tensor, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """`target` where there is a label, and the mean of the teachers' logits where there is none."""
    return torch.where((labels != IGNORED).unsqueeze(-1), target, mean_logits(logits))


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
