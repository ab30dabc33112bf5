"""Codistillation: Anil, Pereyra, Passos, Ormandi, Dahl, Hinton, ICLR 2018, arXiv 1804.03235.

Replicas of one architecture train side by side, each on its own batches. After a burn-in on the labels alone, each adds
the cross-entropy to the mean predictive distribution of its peers, computed on its own batch by stale copies of them:

    L_i = CE(y, p_i) + weight * T^2 * CE( 1/m * sum_j softmax(z_j' / T), softmax(z_i / T) )

where z_j' are the logits of the newest copy of peer j at hand and m counts the peers present. Without any, the term is
off. Only replica i's own weights receive gradient. `method.divergence` offers other measures in place of the second
cross-entropy, `method.weight_schedule` lets the weight change from the burn-in on, and `method.harm_guard` lets peer j
count exp(-d) where it is d nats worse than replica i on the batch, by the labels.

`method.target` builds another target than the mean. KDCL over stale peers (see `kdcl.py`) takes the student's own
prediction for one more, detached in the target. OKDDip's attention over them (see `okddip.py`) mixes the peers present,
by h, what a classifier is shown; alpha is not detached, and each replica has a W_L and a W_E that it sends to nobody:

    attention  sum_j alpha_j softmax(z_j' / T), alpha_j = softmax_j((W_L h_i) . (W_E h_j'))

The paper has the student in its mixture too (`target.itself`), where the divergence is least when it listens to itself
alone. `distill/num_attended` logs to how many a replica listens, exp(entropy of alpha) in the mean, and
`distill/own_attention` the share of the student.

With `method.critics` replicas also bring the distribution of their feature maps to that of their peers', each through a
critic of its own: AFD (see `afd.py`) over stale peers, whose copies show theirs. `stale_critics.py` has the formulas.

With `exchange.currency` 'predictions' softmax(z_j') is what peer j predicted for the sample when it last trained on it.
Then m counts the peers who have done so, sample by sample, and a sample of which nobody has spoken has no second term.
Where it is known by draws, gradients are right in the mean, and so is the logged cross-entropy; the logged `kl` is not:
it is too high by the entropy that draws lack.

`distill/teacher_off_label` logs how strong the teachers are: the probability that they take off the label, in the mean
over the batch, 0 where nobody has spoken; `distill/teacher_advantage` how much better than the student they know the
labels, in nats, where they have.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from codistill import losses
from codistill.divergence import Pulled, advantage, attended, by_labels, guarded, pull
from codistill.exchange.clock import PublishRule
from codistill.exchange.predictions import form_of
from codistill.methods.common import groups, one_network, one_phase
from codistill.methods.stale_critics import with_critics
from codistill.phase import Artifacts, Learner, Loss, Phase, Replica, Step
from codistill.recipes import Recipe, open_recipe
from codistill.schedules import open_schedule
from codistill.spec import AttentionTarget, Codistillation, JobSpec, MeanTarget
from codistill.surgery.attention import Listener
from codistill.surgery.stages import shapes
from codistill.teachers import PeerPredictions, Peers, TeacherSource
from codistill.topology import teachers_of


def plan(spec: JobSpec, method: Codistillation, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """One phase: burn-in is the time during which no peer has published and the list of targets is empty. Raises
    `ValueError` for attention or critics among models that do not offer what these compare, or not in one form."""
    factor = open_schedule(method.weight_schedule, spec.training.steps - spec.burn_in_steps)
    attends = isinstance(method.target, AttentionTarget)
    width = features_width(spec, recipe) if attends else 0

    def learner(artifacts: Artifacts) -> Learner:
        parts = one_network(recipe, artifacts)  # first, so that it begins as it would by itself
        if attends:
            parts["attention"] = Listener(width)
        return parts

    def loss(step: Step) -> Loss:
        student = step.show("net")
        task = recipe.task_loss(student, step.batch)
        peers = step.targets["peers"]
        if not peers:
            stats = {"train/task_loss": task.detach(), "distill/num_teachers": torch.tensor(0.0)}
            return Loss(task, stats, said=student)
        own, said = student["logits"], [peer["logits"] for peer in peers]
        present = torch.stack([peer["found"] for peer in peers]) if "found" in peers[0] else None
        told = [peer["log_labels"] for peer in peers] if "log_labels" in peers[0] else None
        better = advantage(said, own, step.batch.y, present=present, log_labels=told)
        trust = guarded(better) if method.harm_guard else None
        listening: dict[str, Tensor] = {}
        match method.target:
            case MeanTarget():
                pulled = pulled_by(method, said, own, trust=trust, present=present)
            case AttentionTarget(itself=itself):
                speakers = [student, *peers] if itself else peers
                alpha = step.parts["attention"](student["features"], [one["features"] for one in speakers])
                mixed = [one["logits"] for one in speakers]
                pulled = attended(mixed, own, alpha, temperature=method.temperature)
                listening = attention_of(alpha, itself=itself)
            case chosen:
                target = by_labels(chosen, everyone(own, said, present), step.batch.y)
                heard = None if present is None else present.any(0, keepdim=True)
                pulled = pulled_by(method, [target], own, present=heard)
        weight = method.weight * factor(step.index - spec.burn_in_steps)
        stats = {
            "train/task_loss": task.detach(),
            "train/distill_loss": pulled.loss.detach(),
            "distill/num_teachers": torch.tensor(float(len(peers))),
            "distill/teacher_off_label": losses.off_label(pulled.target, step.batch.y, heard=pulled.heard),
            "distill/teacher_advantage": better.mean(),
            "distill/weight": torch.tensor(weight),
            **listening,
        }
        if trust is not None:
            stats["distill/trust"] = trust.mean()
        if present is not None:
            stats |= coverage(present, torch.stack([peer["age_steps"] for peer in peers]))
        return Loss(task + weight * pulled.loss, stats, said=student)

    phases = one_phase(
        spec,
        recipe,
        replica,
        loss,
        teachers=[peers_of(spec, recipe, replica)],
        learner=learner,
        beside=groups(spec.training, {"attention": ("attention.*",)} if attends else {}),
    )
    if method.critics is None:
        return phases
    return [with_critics(phase, spec, method.critics, recipe) for phase in phases]


def pulled_by(method: Codistillation, teachers: Sequence[Tensor], student: Tensor, **heard: Tensor | None) -> Pulled:
    """The term of the method's divergence and temperature; `heard` is as for `pull`."""
    return pull(method.divergence, teachers, student, temperature=method.temperature, **heard)


def attention_of(alpha: Tensor, *, itself: bool) -> dict[str, Tensor]:
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


def everyone(own: Tensor, peers: Sequence[Tensor], present: Tensor | None) -> list[Tensor]:
    """The logits of the student and of its peers, [N, ..., classes] each, without gradient. Who has no word on a sample
    (`present` [m, N]) is taken to say what the student says."""
    own = own.detach()
    if present is None:
        return [own, *peers]
    each = [found.reshape(-1, *(1,) * (own.dim() - 1)) for found in present]
    return [own, *(torch.where(found, peer, own) for found, peer in zip(each, peers, strict=True))]


def peers_of(spec: JobSpec, recipe: Recipe, replica: Replica) -> TeacherSource:
    """The other replicas, heard in the currency of the spec. Raises `ValueError` when that does not fit the recipe."""
    rule = PublishRule(spec.burn_in_steps, spec.exchange.interval_steps)
    form = form_of(spec.exchange.currency, spec.method, recipe.classes, tuple(recipe.example(1).y.shape[1:]))
    if form is None:
        return Peers(rule)
    return PeerPredictions(
        rule,
        form,
        teachers_in=lambda step: teachers_of(spec.exchange.topology, replica.index, replica.count, rule.exchange(step)),
        stream=(replica.seed, replica.index, "predictions"),
        max_age_steps=spec.exchange.max_offset_steps,
    )


def coverage(found: Tensor, ages_steps: Tensor) -> dict[str, Tensor]:
    """Which samples each peer was found to have spoken of, and how long ago, both [m, N]: teachers per sample, and the
    mean age of what was found (0 when nothing was)."""
    count = found.sum()
    return {
        "distill/num_teachers": count / found.shape[1],
        "predictions/mean_age_steps": ages_steps.sum() / count.clamp(min=1),
    }
