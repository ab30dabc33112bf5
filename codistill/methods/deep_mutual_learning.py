"""Deep mutual learning: Zhang, Xiang, Hospedales, Lu, CVPR 2018, arXiv 1706.00384.

Networks 1..K see the same batch. Each fits the labels and the predictions of the others:

    L_k = CE(y, p_k) + weight * 1/(K-1) * sum_{l != k} T^2 * KL(p_l^T || p_k^T)

`simultaneous` updates all from the same predictions. `sequential`, the paper's algorithm, updates network 1, shows it
the batch again, updates network 2 from that, and so on. In form `ensemble` (the paper's DML_e) each network has one
divergence, from the mean of the others' predictions; its gradient is the same, its value less by how much they differ.
Only network k's own weights receive gradient from L_k. Networks may be of different sizes (`method.others`); the first
is the one that is exported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from codistill.batch import as_outputs
from codistill.divergence import pull
from codistill.methods.cohort import built, networks
from codistill.methods.common import batches_of, groups, surveys
from codistill.phase import Loss, Phase, Replica, Step, Update
from codistill.randomness import unseen
from codistill.recipes import Recipe
from codistill.spec import DeepMutualLearning, JobSpec


def plan(spec: JobSpec, method: DeepMutualLearning, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """One phase, a part for each network."""
    recipes = networks(method, recipe)
    nets = list(recipes)

    def of_one(net: str, logits: Mapping[str, Tensor], step: Step, task: Tensor) -> Loss:
        others = [said for other, said in logits.items() if other != net]
        distill = against(others, logits[net], ensemble=method.form == "ensemble", temperature=method.temperature)
        whose = "" if net == nets[0] else f"{net}/"
        stats = {f"train/{whose}task_loss": task.detach(), f"train/{whose}distill_loss": distill.detach()}
        return Loss(task + method.weight * distill, stats)

    def together(step: Step) -> Loss:
        said = {net: step.show(net) for net in nets}
        logits = {net: outputs["logits"] for net, outputs in said.items()}
        each = [of_one(net, logits, step, recipes[net].task_loss(said[net], step.batch)) for net in nets]
        stats = {name: value for loss in each for name, value in loss.stats.items()}
        return Loss(torch.stack([loss.value for loss in each]).sum(), stats)

    def in_turn(net: str) -> Callable[[Step], Loss]:
        def loss(step: Step) -> Loss:
            said = step.show(net)
            others = {other: seen_again(step, other) for other in nets if other != net}
            return of_one(net, {net: said["logits"], **others}, step, recipes[net].task_loss(said, step.batch))

        return loss

    simultaneous = [Update(together, trains=tuple(nets))]
    sequential = [Update(in_turn(net), trains=(net,)) for net in nets]
    return [
        Phase(
            name="train",
            steps=spec.training.steps,
            learner=lambda artifacts: built(recipes),
            batches=lambda artifacts: batches_of(spec, recipe, replica),
            updates=simultaneous if method.order == "simultaneous" else sequential,
            groups=groups(spec.training, {net: (f"{net}.*",) for net in nets}),
            surveys=surveys(spec, recipe, {nets[0]: "", **{net: f"{net}/" for net in nets[1:]}}),
            export=lambda learner: learner[nets[0]],
        )
    ]


def against(others: Sequence[Tensor], student: Tensor, *, ensemble: bool, temperature: float) -> Tensor:
    """The distillation term of one network: logits [..., classes] of the others and its own to a scalar."""
    if ensemble:
        return pull("kl", others, student, temperature=temperature).loss
    return torch.stack([pull("kl", [other], student, temperature=temperature).loss for other in others]).mean()


def seen_again(step: Step, part: str) -> Tensor:
    """What a part says of the batch as it is now, in training's normalisation and without a trace."""
    with unseen(step.learner[part], "batch"):
        return as_outputs(step.learner[part](step.batch.views["x"]))["logits"]
