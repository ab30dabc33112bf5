"""Online adversarial feature map distillation: Chung, Park, Kim, Kwak, ICML 2020, arXiv 2002.01775.

Networks 1..K see the same batch, and network k learns from network j = k - 1 (the first from the last; K = 2 is
two-way). G_k is a network up to its last feature maps, t_k a transition to a common width, D_k the critic of network
k, which takes its teacher's features for real and its own for made up. Each step makes three updates, each with a
forward of its own, of other parameters by other optimizers:

    logits     L_k = CE(y, p_k) + weight * T^2 * KL(p_j^T || p_k^T)                    network k
    features   (1 - D_k(t_k(G_k x)))^2                                                  G_k and t_k
    critics    (1 - D_k(t_j(G_j x)))^2 + D_k(t_k(G_k x))^2                              D_k

Features as the critics see them are detached; a critic that cannot tell scores 1/2, and its loss is 1/2. What passes
through a network a second time in a step adds nothing to its normalisation statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codistill.batch import as_outputs
from codistill.divergence import pull
from codistill.methods.common import batches_of, groups, surveys
from codistill.phase import Artifacts, Group, Learner, Loss, Phase, Replica, Step, Update
from codistill.randomness import unseen, untracked
from codistill.recipes import Recipe
from codistill.spec import Afd, JobSpec
from codistill.surgery.critics import Critic, Transition
from codistill.surgery.stages import Taps, cut, last_stage, reached, shapes


def plan(spec: JobSpec, method: Afd, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """One phase of three updates; raises `ValueError` for a model that offers no stages."""
    pairs = [(student, (student - 1) % method.nets) for student in range(method.nets)]

    def staged() -> Taps:
        return cut(recipe.build_model(), method=method.kind)

    taps = shapes(staged, recipe.example(2))
    maps = last_stage(taps)

    def learner(artifacts: Artifacts) -> Learner:
        parts = Learner({f"net{k}": staged() for k in range(method.nets)})
        for k in range(method.nets):
            parts[f"transition{k}"] = Transition(taps[maps], method.channels)
            parts[f"critic{k}"] = Critic(taps[maps], method.channels)
        return parts

    def logits(step: Step) -> Loss:
        said = [step.show(f"net{k}") for k in range(method.nets)]
        tasks = torch.stack([recipe.task_loss(outputs, step.batch) for outputs in said])
        pulled = [
            pull("kl", [said[teacher]["logits"]], said[student]["logits"], temperature=method.temperature).loss
            for student, teacher in pairs
        ]
        distill = torch.stack(pulled)
        stats = {"train/task_loss": tasks[0].detach(), "train/distill_loss": distill[0].detach()}
        return Loss((tasks + method.weight * distill).sum(), stats)

    def features(step: Step) -> Loss:
        fooled = [fooling(step.parts[f"critic{k}"], shown(step, k, maps)) for k, _ in pairs]
        value = torch.stack(fooled).sum()
        return Loss(value, {"train/feature_loss": value.detach() / method.nets})

    def critics(step: Step) -> Loss:
        seen = [shown_again(step, k, maps) for k in range(method.nets)]
        judged = [criticism(step.parts[f"critic{own}"], seen[teacher], seen[own]) for own, teacher in pairs]
        value = torch.stack(judged).sum()
        return Loss(value, {"train/critic_loss": value.detach() / method.nets})

    rates = (method.adversarial_learning_rate, method.adversarial_weight_decay)
    before_maps = reached(staged, recipe.example(2), maps)
    features_group = [f"net{k}.{name}" for k in range(method.nets) for name in before_maps]
    return [
        Phase(
            name="train",
            steps=spec.training.steps,
            learner=learner,
            batches=lambda artifacts: batches_of(spec, recipe, replica),
            updates=[
                Update(logits, trains=tuple(f"net{k}" for k in range(method.nets))),
                Update(features, trains=("features",)),
                Update(critics, trains=("critics",)),
            ],
            groups={
                **groups(spec.training, {f"net{k}": (f"net{k}.*",) for k in range(method.nets)}),
                "features": adversarial(*rates, *features_group, "transition*"),
                "critics": adversarial(*rates, "critic*"),
            },
            surveys=surveys(spec, recipe, {f"net{k}": f"net{k}/" if k else "" for k in range(method.nets)}),
            export=stripped,
        )
    ]


def shown(step: Step, k: int, maps: str) -> Tensor:
    """Network k's feature maps through its transition, [N, channels, ...]."""
    with untracked(step.learner[f"net{k}"]):
        return step.parts[f"transition{k}"](step.show(f"net{k}")[maps])


def shown_again(step: Step, k: int, maps: str) -> Tensor:
    """The same, as it is now, without gradient."""
    net, transition = step.learner[f"net{k}"], step.learner[f"transition{k}"]
    with unseen(net, "batch"):
        return transition(as_outputs(net(step.batch.views["x"]))[maps])


def fooling(critic: nn.Module, made_up: Tensor) -> Tensor:
    """What features have to learn: to be taken for a teacher's (least squares)."""
    return (1 - critic(made_up)).square().mean()


def criticism(critic: nn.Module, real: Tensor, made_up: Tensor) -> Tensor:
    """What a critic has to learn: 1 for features of teachers, [n, channels, ...], 0 for those of its own network,
    [N, channels, ...] (least squares)."""
    of_real, of_made_up = critic(torch.cat([real, made_up])).split([len(real), len(made_up)])
    return (1 - of_real).square().mean() + of_made_up.square().mean()


def adversarial(learning_rate: float, weight_decay: float, *select: str) -> Group:
    """Adam at a rate of its own, constant."""
    return Group(
        select,
        lambda parameters: torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay),
        schedule=lambda step: 1.0,
    )


def stripped(learner: Learner) -> nn.Module:
    """The first network as the recipe built it."""
    first = learner["net0"]
    assert isinstance(first, Taps)
    return first.net
