"""Online knowledge distillation via collaborative learning (KDCL): Guo, Wang, Wu, Yu, Liang, Hu, Luo, CVPR 2020.

Networks 1..m see the same samples, each in a random view of its own. All are pulled towards one target that is built
from what they say, z_1..z_m, and is meant to be better than any of them:

    L_i = CE(y, p_i) + weight * T^2 * KL( softmax(z_t / T) || softmax(z_i / T) )

    naive      z_t = z_k, k = argmin_i CE(y, p_i), for each sample
    linear     z_t = sum_i alpha_i z_i, alpha = argmin CE(y, softmax(z_t)) over alpha >= 0, sum alpha = 1
    min_logit  z_t = min_i (z_i - z_i[y]), class by class
    general    softmax(z_t / T) = sum_i w_i softmax(z_i / T), w = C^-1 1 / (1^T C^-1 1), negative ones set to 0,
               C_ij = mean <p_i - y, p_j - y> over samples that are held out of training

The target is detached. C is measured every `target.refresh_steps`, and w even until then. A batch has one alpha, over
all ranks, or each sample its own (`target.per`). Where the recipe does not augment, or with `own_views` off, all
networks see the view of the first, which is the one that is exported. The others may be larger or smaller
(`method.others`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from codistill import combine, losses
from codistill.batch import Batch, as_outputs
from codistill.data.split import Split, held_out, in_order
from codistill.divergence import by_labels
from codistill.methods.cohort import built, networks
from codistill.methods.common import TRAIN, batches_of, groups, surveys
from codistill.phase import Learner, Loss, Phase, Replica, State, Step, Survey, Update
from codistill.randomness import unseen
from codistill.recipes import Recipe
from codistill.spec import GeneralTarget, JobSpec, Kdcl
from codistill.spec.offers import offer_of


def plan(spec: JobSpec, method: Kdcl, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """One phase, a part for each network."""
    recipes = networks(method, recipe)
    nets = list(recipes)
    offer = offer_of(spec.recipe)
    views = tuple(nets[1:]) if method.own_views and (offer.augmented or offer.installed) else ()
    target = method.target
    out = target.held_out if isinstance(target, GeneralTarget) else 0

    def parted() -> tuple[Split, Split]:
        return held_out(recipe.split("train"), out)

    def loss(step: Step) -> Loss:
        said = {net: step.show(net, net if net in step.batch.views else "x") for net in nets}
        logits = [outputs["logits"] for outputs in said.values()]
        towards = target_of(method, logits, step)
        tasks = [recipes[net].task_loss(outputs, step.batch) for net, outputs in said.items()]
        pulls = [losses.kl_divergence(towards, one, temperature=method.temperature) for one in logits]
        stats = {"distill/target_off_label": losses.off_label(towards, step.batch.y)}
        for net, task, pull in zip(nets, tasks, pulls, strict=True):
            whose = "" if net == nets[0] else f"{net}/"
            stats |= {f"train/{whose}task_loss": task.detach(), f"train/{whose}distill_loss": pull.detach()}
        return Loss(torch.stack([t + method.weight * p for t, p in zip(tasks, pulls, strict=True)]).sum(), stats)

    measured: list[Survey] = []
    if isinstance(target, GeneralTarget) and out:
        every = target.refresh_steps or spec.training.evaluate_interval_steps
        measured = [Survey("held_out", every, lambda: in_order(parted()[1]), errors, report, fold)]
    return [
        Phase(
            name=TRAIN,
            steps=spec.training.steps,
            learner=lambda artifacts: built(recipes),
            batches=lambda artifacts: batches_of(
                spec, recipe, replica, split=parted()[0] if out else None, views=views
            ),
            updates=[Update(loss, trains=tuple(nets))],
            groups=groups(spec.training, {net: (f"{net}.*",) for net in nets}),
            surveys=[*surveys(spec, recipe, {nets[0]: "", **{net: f"{net}/" for net in nets[1:]}}), *measured],
            export=lambda learner: learner[nets[0]],
            state=lambda: {"weights": torch.full((method.nets,), 1 / method.nets)} if measured else {},
        )
    ]


def target_of(method: Kdcl, logits: Sequence[Tensor], step: Step) -> Tensor:
    """Log-probabilities [..., classes] at the temperature, without gradient, of the networks' logits."""
    if not isinstance(method.target, GeneralTarget):
        towards = by_labels(method.target, logits, step.batch.y, add_up=step.add_up)
        return combine.mean_probabilities([towards], temperature=method.temperature)
    weights = None
    if "weights" in step.state:
        weights = step.state["weights"].to(logits[0].device).reshape(-1, *(1,) * (logits[0].dim() - 1))
    return combine.mean_probabilities([one.detach() for one in logits], temperature=method.temperature, weights=weights)


def errors(learner: Learner, batch: Batch) -> Mapping[str, float]:
    """Sums of <p_i - y, p_j - y> over a batch, under `i,j`, and how many places they are over."""
    with unseen(learner):
        logits = [as_outputs(net(batch.views["x"]))["logits"] for net in learner.values()]
        products = combine.error_products(logits, batch.y)
    each = {f"{i},{j}": float(value) for i, row in enumerate(products) for j, value in enumerate(row)}
    return each | {"count": float((batch.y != losses.IGNORED).sum())}


def weights_of(total: Mapping[str, float]) -> tuple[Tensor, int]:
    """From the sums of `errors` to the weight of each network, [m], and how many were below 0."""
    nets = round((len(total) - 1) ** 0.5)
    products = torch.tensor([[total[f"{i},{j}"] for j in range(nets)] for i in range(nets)], dtype=torch.float64)
    return combine.held_out_weights(products / total["count"])


def report(total: Mapping[str, float]) -> Mapping[str, float]:
    """What is logged of the sums of `errors`: the networks' weights, and how many were below 0."""
    weights, negative = weights_of(total)
    each = {f"distill/weight_net{number}": float(weight) for number, weight in enumerate(weights)}
    return each | {"distill/negative_weights": float(negative)}


def fold(state: State, total: Mapping[str, float]) -> State:
    """The state with the weights that the sums of `errors` give."""
    return {**state, "weights": weights_of(total)[0].float()}
