"""From what teachers and student say to the term that pulls the student: one choice for all loops and methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from codistill import combine, losses
from codistill.spec import Divergence, LinearTarget, MinLogitTarget, NaiveTarget


@dataclass(frozen=True)
class Pulled:
    """The term, and what it pulls towards."""

    loss: Tensor
    """A scalar, unweighted."""
    target: Tensor
    """Log-probabilities [..., classes] at temperature 1, whatever that of the term; without gradient."""
    heard: Tensor | None = None
    """Of which samples [N] any teacher has a word; None where each has one on all."""


def pull(
    divergence: Divergence,
    teachers: Sequence[Tensor],
    student: Tensor,
    *,
    temperature: float = 1.0,
    trust: Tensor | None = None,
    present: Tensor | None = None,
) -> Pulled:
    """`divergence` between the mean of the teachers' distributions at the temperature (of their logits, for
    `logit_regression`) and the student's. `teachers`: m >= 1 logits [N, ..., classes]; `student`: the same.

    `trust` [m] in 0..1 is how much each teacher counts: what is taken from one is not given to the others. `present`
    [m, N] says which teachers have a word on which sample: the mean is over those, and samples without any add nothing.
    """
    heard = None if present is None else present.any(0)
    weights = shares = None
    if trust is not None or present is not None:
        weights, shares = _weights_and_shares(len(teachers), student, trust, present)
    if divergence == "logit_regression":
        logits = combine.mean_logits(teachers, weights=weights).detach()
        return Pulled(losses.logit_regression(logits, student, shares=shares), logits.log_softmax(-1), heard)
    target = combine.mean_probabilities(teachers, temperature=temperature, weights=weights).detach()
    match divergence:
        case "cross_entropy":
            loss = losses.soft_cross_entropy(target, student, temperature=temperature, shares=shares)
        case "kl":
            loss = losses.kl_divergence(target, student, temperature=temperature, shares=shares)
        case "reverse_kl":
            loss = losses.reverse_kl_divergence(target, student, temperature=temperature, shares=shares)
        case _:
            assert_never(divergence)
    plain = target if temperature == 1 else combine.mean_probabilities(teachers, weights=weights).detach()
    return Pulled(loss, plain, heard)


def _weights_and_shares(
    teachers: int, student: Tensor, trust: Tensor | None, present: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Of each teacher in the mean at each place, [m, ...], and of each place in the loss, [...]."""
    shape = (teachers, *student.shape[:-1])
    heard = torch.ones(shape, device=student.device)
    if present is not None:
        heard = heard * present.reshape(*present.shape, *(1,) * (len(shape) - 2))
    trusted = heard if trust is None else heard * trust.reshape(-1, *(1,) * (len(shape) - 1))
    total = trusted.sum(0)
    # Where nobody counts the mean is that of all, and its share 0.
    weights = torch.where(total > 0, trusted / total, 1 / teachers)
    return weights, total / heard.sum(0).clamp(min=1)


def attended(teachers: Sequence[Tensor], student: Tensor, attention: Tensor, *, temperature: float = 1.0) -> Pulled:
    """KL between the teachers' distributions at the temperature, mixed by `attention` [..., m] at each place, and the
    student's. Gradient goes to the student's logits and to the attention, else that would never learn (OKDDip, Chen et
    al. 2020); what teachers say is detached."""
    heard = [logits.detach() for logits in teachers]
    weights = attention.movedim(-1, 0)
    target = combine.mean_probabilities(heard, temperature=temperature, weights=weights)
    plain = target if temperature == 1 else combine.mean_probabilities(heard, weights=weights)
    return Pulled(losses.kl_divergence(target, student, temperature=temperature, through=True), plain.detach())


def by_labels(
    target: NaiveTarget | LinearTarget | MinLogitTarget,
    logits: Sequence[Tensor],
    labels: Tensor,
    *,
    add_up: combine.AddUp = combine.of_one,
) -> Tensor:
    """What the logits [..., classes] of m networks become, by the labels [...]: logits of their size, without
    gradient. `add_up` is as for `combine.linear`."""
    with torch.no_grad():
        match target:
            case NaiveTarget():
                return combine.naive(logits, labels)
            case LinearTarget():
                return combine.linear(logits, labels, per_place=target.per == "sample", add_up=add_up)
            case MinLogitTarget():
                return combine.min_logit(logits, labels)


def advantage(
    teachers: Sequence[Tensor],
    student: Tensor,
    labels: Tensor,
    *,
    present: Tensor | None = None,
    log_labels: Sequence[Tensor] | None = None,
    add_up: combine.AddUp = combine.of_one,
) -> Tensor:
    """By how much each of m teachers knows the labels [...] better than the student: the student's cross-entropy less
    the teacher's, in nats, [m]; without gradient. With `present` [m, N], on the samples that the teacher has a word on,
    and 0 where there are none. With `log_labels`, m of [...], those are the teachers' log-probabilities of the labels,
    whatever `teachers` say of them: an estimate from draws is right in the mean, but its logarithm is not. `add_up` is
    as for `combine.linear`: the mean is then over all parts of the batch."""
    with torch.no_grad():
        if log_labels is None:
            theirs = torch.stack([losses.nats(teacher, labels) for teacher in teachers])
        else:
            theirs = -torch.stack(list(log_labels))
        known = (labels != losses.IGNORED).expand(theirs.shape)
        if present is not None:
            known = known & present.reshape(*present.shape, *(1,) * (labels.dim() - 1))
        better = (losses.nats(student, labels) - theirs).masked_fill(~known, 0.0)
        nats, count = add_up(torch.stack([one.flatten(1).sum(1) for one in (better, known.to(better.dtype))]))
        return nats / count.clamp(min=1)


def diversity(logits: Sequence[Tensor]) -> Tensor:
    """How differently m networks predict, of their logits [..., classes]: the Euclidean distance between the
    distributions of two of them, in the mean over all pairs and places; a scalar in 0..sqrt(2), 0 of one network;
    without gradient."""
    each = torch.stack([one.detach().float().softmax(-1) for one in logits])
    first, second = torch.triu_indices(len(logits), len(logits), offset=1).unbind()
    distances = (each[first] - each[second]).norm(dim=-1)
    return distances.mean() if len(logits) > 1 else torch.tensor(0.0)


def guarded(advantages: Tensor) -> Tensor:
    """How far teachers of these advantages [m] may be trusted: one who is d nats worse than the student counts
    exp(-d), one who is better counts 1."""
    return advantages.clamp(max=0.0).exp()
