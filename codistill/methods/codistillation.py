"""Codistillation: Anil, Pereyra, Passos, Ormandi, Dahl, Hinton, ICLR 2018, arXiv 1804.03235.

Replicas of one architecture train side by side, each on its own batches. After a burn-in on the labels alone, each adds
the cross-entropy to the mean predictive distribution of its peers, computed on its own batch by stale copies of them:

    L_i = CE(y, p_i) + weight * T^2 * CE( 1/m * sum_j softmax(z_j' / T), softmax(z_i / T) )

where z_j' are the logits of the newest copy of peer j at hand and m counts the peers present. Without any, the term is
off. Only replica i's own weights receive gradient. `method.divergence` offers other measures in place of the second
cross-entropy, `method.weight_schedule` lets the weight change from the burn-in on, and `method.harm_guard` lets peer j
count exp(-d) where it is d nats worse than replica i on the batch, by the labels.

`method.target` makes another target of what the peers say than their mean: one of KDCL's (`naive`, `linear`,
`min_logit`; see `kdcl.py`), with the student's own prediction, detached, among them; or the mixture that `attention`
over features chooses for each sample (see `okddip.py`). `stale_targets.py` has the formulas, and what they log.

With `method.critics` replicas also bring the distribution of their feature maps to that of their peers', each through a
critic of its own: AFD (see `afd.py`) over stale peers, whose copies show theirs. `stale_critics.py` has the formulas.

With `exchange.currency` 'predictions' softmax(z_j') is what peer j predicted for the sample when it last trained on it.
Then m counts the peers who have done so, sample by sample, and a sample of which nobody has spoken has no second term.
Where it is known by draws, gradients are right in the mean, and so is the logged cross-entropy; the logged `kl` is not:
it is too high by the entropy that draws lack.

`distill/teacher_off_label` logs how strong the teachers are: the probability that they take off the label, in the mean
over the batch, at temperature 1, 0 where nobody has spoken; `distill/teacher_advantage` how much better than the
student they know the labels, in nats, where they have.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from codistill import losses
from codistill.exchange.clock import PublishRule
from codistill.exchange.predictions import form_of
from codistill.methods.common import groups, one_network, one_phase
from codistill.methods.stale_critics import with_critics
from codistill.methods.stale_targets import features_width, pulled_by
from codistill.phase import Artifacts, Learner, Loss, Phase, Replica, Step
from codistill.recipes import Recipe
from codistill.schedules import open_schedule
from codistill.spec import AttentionTarget, Codistillation, JobSpec
from codistill.surgery.attention import Listener
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
        pulled, listening = pulled_by(method, student, peers, step)
        weight = method.weight * factor(step.index - spec.burn_in_steps)
        stats = {
            "train/task_loss": task.detach(),
            "train/distill_loss": pulled.loss.detach(),
            "distill/teacher_off_label": losses.off_label(pulled.target, step.batch.y, heard=pulled.heard),
            "distill/weight": torch.tensor(weight),
            **listening,
        }
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
