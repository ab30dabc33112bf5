"""What stale peers become for a student: the term of codistillation, by `method.target`.

Besides their mean, KDCL's targets and OKDDip's attention, by the very functions of the live methods:

    naive, linear, min_logit   as in `kdcl.py`, of the peers and the student itself, whose prediction is detached here
    attention                  sum_j alpha_j softmax(z_j' / T), alpha_j = softmax_j((W_L h_i) . (W_E h_j'))

h is what a classifier is shown. alpha is not detached, and each replica has a W_L and a W_E that it sends to nobody.
The paper has the student in its mixture too (`target.itself`), where the divergence is least when it listens to itself
alone. `distill/num_attended` logs to how many a replica listens, exp(entropy of alpha) in the mean, and
`distill/own_attention` the share of the student.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from codistill.batch import Outputs
from codistill.combine import of_one
from codistill.divergence import Pulled, advantage, attended, by_labels, guarded, pull
from codistill.phase import Step
from codistill.recipes import Recipe, open_recipe
from codistill.spec import AttentionTarget, Codistillation, JobSpec, MeanTarget
from codistill.surgery.stages import shapes

Stats = dict[str, Tensor]


def pulled_by(method: Codistillation, student: Outputs, peers: Sequence[Outputs], step: Step) -> tuple[Pulled, Stats]:
    """The term, and what is logged of those who teach."""
    own, said = student["logits"], [peer["logits"] for peer in peers]
    # Of predictions that were exchanged, not every peer has one of every sample.
    present = torch.stack([peer["found"] for peer in peers]) if "found" in peers[0] else None
    told = [peer["log_labels"] for peer in peers] if "log_labels" in peers[0] else None
    # Who is trusted how far is the same on all ranks; where nobody asks, they need not wait for each other.
    add_up = step.add_up if method.harm_guard else of_one
    better = advantage(said, own, step.batch.y, present=present, log_labels=told, add_up=add_up)
    stats = {"distill/num_teachers": torch.tensor(float(len(peers))), "distill/teacher_advantage": better.mean()}
    if present is not None:
        stats |= coverage(present, torch.stack([peer["age_steps"] for peer in peers]))
    match method.target:
        case MeanTarget():
            trust = guarded(better) if method.harm_guard else None
            if trust is not None:
                stats["distill/trust"] = trust.mean()
            weights = {"trust": trust, "present": present}
            return pull(method.divergence, said, own, temperature=method.temperature, **weights), stats
        case AttentionTarget(itself=itself):
            speakers = [student, *peers] if itself else peers
            alpha = step.parts["attention"](student["features"], [one["features"] for one in speakers])
            mixed = [one["logits"] for one in speakers]
            pulled = attended(mixed, own, alpha, temperature=method.temperature)
            return pulled, stats | attention_of(alpha, itself=itself)
        case chosen:
            target = by_labels(chosen, everyone(own, said, present), step.batch.y, add_up=step.add_up)
            heard = None if present is None else present.any(0, keepdim=True)
            return pull(method.divergence, [target], own, temperature=method.temperature, present=heard), stats


def everyone(own: Tensor, peers: Sequence[Tensor], present: Tensor | None) -> list[Tensor]:
    """The logits of the student and of its peers, [N, ..., classes] each, without gradient. Who has no word on a sample
    (`present` [m, N]) is taken to say what the student says."""
    own = own.detach()
    if present is None:
        return [own, *peers]
    each = [found.reshape(-1, *(1,) * (own.dim() - 1)) for found in present]
    return [own, *(torch.where(found, peer, own) for found, peer in zip(each, peers, strict=True))]


def coverage(found: Tensor, ages_steps: Tensor) -> Stats:
    """Which samples each peer was found to have spoken of, and how long ago, both [m, N]: teachers per sample, and the
    mean age of what was found (0 when nothing was)."""
    count = found.sum()
    return {
        "distill/num_teachers": count / found.shape[1],
        "predictions/mean_age_steps": ages_steps.sum() / count.clamp(min=1),
    }


def attention_of(alpha: Tensor, *, itself: bool) -> Stats:
    """To how many of m a replica listens, of weights [..., m]: 1 when to one alone, m when to all alike; and its own
    share, which comes first, when it is one of them."""
    alpha = alpha.detach()
    stats = {"distill/num_attended": (-(alpha * alpha.log()).sum(-1)).exp().mean()}
    return stats | ({"distill/own_attention": alpha[..., 0].mean()} if itself else {})


def features_width(spec: JobSpec, recipe: Recipe) -> int:
    """Of what the classifier of the recipe's model is shown. Raises `ValueError` when the model does not tell, or
    another replica's is of another width."""
    everyone = [open_recipe(spec.for_replica(peer)) for peer in range(len(spec.recipes))]
    taps = [shapes(one.build_model, one.example(2)) for one in [recipe, *everyone]]
    widths = [one["features"][-1] for one in taps if "features" in one]
    if len(widths) < len(taps) or len(set(widths)) > 1:
        found = ", ".join(map(str, widths)) or "none"
        raise ValueError(
            "method.target 'attention' compares what the models of all replicas answer as 'features' (found are widths"
            f" {found} of {len(taps)}); let each answer them, of one width, or use another target"
        )
    return widths[0]
