"""Codistillation: Anil, Pereyra, Passos, Ormandi, Dahl, Hinton, ICLR 2018, arXiv 1804.03235.

Replicas of one architecture train side by side, each on its own batches. After a burn-in on the labels alone, each adds
the cross-entropy to the mean predictive distribution of its peers, computed on its own batch by stale copies of them:

    L_i = CE(y, p_i) + weight * T^2 * CE( 1/m * sum_j softmax(z_j' / T), softmax(z_i / T) )

where z_j' are the logits of the newest copy of peer j at hand and m counts the peers present. Without any, the term is
off. Only replica i's own weights receive gradient. `method.divergence` offers other measures in place of the second
cross-entropy, `method.weight_schedule` lets the weight change from the burn-in on, and `method.harm_guard` lets peer j
count exp(-d) where it is d nats worse than replica i on the batch, by the labels.

`method.target` builds another target than the mean, from the peers and the student's own prediction: KDCL over stale
peers (see `kdcl.py`), where z_i is detached in the target.

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
from codistill.divergence import advantage, by_labels, guarded, pull
from codistill.exchange.clock import PublishRule
from codistill.exchange.predictions import form_of
from codistill.methods.common import one_phase
from codistill.phase import Loss, Phase, Replica, Step
from codistill.recipes import Recipe
from codistill.schedules import open_schedule
from codistill.spec import Codistillation, JobSpec, MeanTarget
from codistill.teachers import PeerPredictions, Peers, TeacherSource
from codistill.topology import teachers_of


def plan(spec: JobSpec, method: Codistillation, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """One phase: burn-in is the time during which no peer has published and the list of targets is empty."""
    factor = open_schedule(method.weight_schedule, spec.training.steps - spec.burn_in_steps)

    def loss(step: Step) -> Loss:
        student = step.show("net")
        task = recipe.task_loss(student, step.batch)
        peers = step.targets["peers"]
        if not peers:
            stats = {"train/task_loss": task.detach(), "distill/num_teachers": torch.tensor(0.0)}
            return Loss(task, stats, said=student)
        said = [peer["logits"] for peer in peers]
        present = torch.stack([peer["found"] for peer in peers]) if "found" in peers[0] else None
        told = [peer["log_labels"] for peer in peers] if "log_labels" in peers[0] else None
        better = advantage(said, student["logits"], step.batch.y, present=present, log_labels=told)
        trust = guarded(better) if method.harm_guard else None
        if isinstance(method.target, MeanTarget):
            teachers, heard = said, present
        else:
            teachers = [by_labels(method.target, everyone(student["logits"], said, present), step.batch.y)]
            heard = None if present is None else present.any(0, keepdim=True)
        pulled = pull(
            method.divergence, teachers, student["logits"], temperature=method.temperature, trust=trust, present=heard
        )
        weight = method.weight * factor(step.index - spec.burn_in_steps)
        stats = {
            "train/task_loss": task.detach(),
            "train/distill_loss": pulled.loss.detach(),
            "distill/num_teachers": torch.tensor(float(len(peers))),
            "distill/teacher_off_label": losses.off_label(pulled.target, step.batch.y, heard=pulled.heard),
            "distill/teacher_advantage": better.mean(),
            "distill/weight": torch.tensor(weight),
        }
        if trust is not None:
            stats["distill/trust"] = trust.mean()
        if present is not None:
            stats |= coverage(present, torch.stack([peer["age_steps"] for peer in peers]))
        return Loss(task + weight * pulled.loss, stats, said=student)

    return one_phase(spec, recipe, replica, loss, teachers=[peers_of(spec, recipe, replica)])


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
