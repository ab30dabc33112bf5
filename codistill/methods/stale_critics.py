"""Adversarial feature map distillation (AFD) over stale peers: Chung, Park, Kim, Kwak, ICML 2020, arXiv 2002.01775.

Each step of codistillation gets two more updates, each with a forward of its own, of other parameters by other
optimizers. G_i is replica i's model up to its last feature maps, t_i a transition to a common width, and D_i its
critic, which takes features of the m peers present, as the newest copies G_j', t_j' at hand show them, for real, and
its own for made up:

    features   (1 - D_i(t_i(G_i x)))^2                                            G_i and t_i
    critic     1/m * sum_j (1 - D_i(t_j'(G_j' x)))^2 + D_i(t_i(G_i x))^2          D_i

As in `afd.py`, whose functions these are, features as the critic sees them are detached, and a second forward of a
step adds nothing to normalisation statistics. t_i is sent with the weights, D_i to nobody; neither is exported. Critics
compare distributions and not samples, so that peers may be old. While nobody is heard there are no such updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from codistill.batch import as_outputs
from codistill.methods.afd import adversarial, criticism, fooling
from codistill.phase import Artifacts, Learner, Loss, Phase, Step, Update
from codistill.randomness import unseen, untracked
from codistill.recipes import Recipe, open_recipe
from codistill.spec import Critics, JobSpec
from codistill.surgery.critics import Critic, Exhibit
from codistill.surgery.stages import Taps, cut, last_stage, reached, shapes


def with_critics(phase: Phase, spec: JobSpec, critics: Critics, recipe: Recipe) -> Phase:
    """`phase`, whose part `net` hears `peers`, with the two updates. Raises `ValueError` for a model that offers no
    stages, and where those of other replicas end in maps of other places."""

    def staged() -> Taps:
        return cut(recipe.build_model(), method=spec.method.kind)

    taps = shapes(staged, recipe.example(2))
    maps = last_stage(taps)
    for peer in range(len(spec.recipes)):
        refuse_other_places(spec, peer, taps[maps])

    def learner(artifacts: Artifacts) -> Learner:
        parts = phase.learner(artifacts)
        parts["net"] = Exhibit(parts["net"], taps[maps], critics.channels)
        parts["critic"] = Critic(taps[maps], critics.channels)
        return parts

    def features(step: Step) -> Loss:
        if not step.targets["peers"]:
            return Loss(torch.zeros(()))
        with untracked(step.learner["net"]):
            own = step.show("net")["exhibit"]
        value = fooling(step.parts["critic"], own)
        return Loss(value, {"train/feature_loss": value.detach()})

    def critic(step: Step) -> Loss:
        peers = step.targets["peers"]
        if not peers:
            return Loss(torch.zeros(()))
        real = torch.cat([peer["exhibit"] for peer in peers])
        net = step.learner["net"]
        with unseen(net, "batch"):
            own = as_outputs(net(step.batch.views["x"]))["exhibit"]
        value = criticism(step.parts["critic"], real, own)
        return Loss(value, {"train/critic_loss": value.detach()})

    rates = (critics.learning_rate, critics.weight_decay)
    before_maps = [f"net.{name}" for name in reached(staged, recipe.example(2), maps)]
    return replace(
        phase,
        learner=learner,
        updates=[*phase.updates, Update(features, trains=("features",)), Update(critic, trains=("critic",))],
        groups={
            **phase.groups,
            "net": replace(phase.groups["net"], select=("net.net.*",)),
            "features": adversarial(*rates, *before_maps, "net.transition.*"),
            "critic": adversarial(*rates, "critic.*"),
        },
        export=stripped,
    )


def refuse_other_places(spec: JobSpec, peer: int, own: Sequence[int]) -> None:
    """Raises `ValueError` when features of a peer's model have other places than `own`, [channels, height, width] or
    [places, width]: one critic sees both."""
    its = open_recipe(spec.for_replica(peer))
    taps = shapes(lambda: cut(its.build_model(), method=spec.method.kind), its.example(2))
    theirs = taps[last_stage(taps)]
    if len(theirs) != len(own) or places(theirs) != places(own):
        raise ValueError(
            f"recipes.{peer}: the last stage of its model gives {list(theirs)} and that of another replica {list(own)},"
            " and method.critics compare them place by place; use models that end alike, or leave critics out"
        )


def places(shape: Sequence[int]) -> Sequence[int]:
    """Of features of one sample, the shape less their width."""
    return shape[1:] if len(shape) == 3 else shape[:-1]


def stripped(learner: Learner) -> nn.Module:
    """The network as the recipe built it."""
    shown = learner["net"]
    assert isinstance(shown, Exhibit)
    return shown.net
