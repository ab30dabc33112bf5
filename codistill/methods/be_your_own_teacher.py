"""Be your own teacher: Zhang, Song, Gao, Chen, Bao, Ma, ICCV 2019, arXiv 1905.08094.

A network is cut into C stages; after each but the last an exit has a bottleneck, which brings the stage's features to
the form of the last ones, and a classifier. The last exit teaches all others in one training run:

    L = CE(y, q_C) + sum_{i<C} [ a * CE(y, q_i) + b * T^2 * KL(q_C^T || q_i^T) + c * MSE(F_i, F_C) ]

Teacher logits and features are detached, so the last classifier learns from the labels alone. The exits are stripped
from what is exported. The paper gives no numbers for a, b, c; ours are the authors' later code's (0.7 and 0.3) and the
weight of the features in public code, turned into one for a mean. With b = c = 0 this is deep supervision, with which
it should be compared: exits change the trunk's gradient by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from codistill import losses
from codistill.divergence import pull
from codistill.methods.common import batches_of, groups, validation
from codistill.phase import Artifacts, Learner, Loss, Phase, Replica, Step, Update
from codistill.recipes import Recipe
from codistill.spec import BeYourOwnTeacher, JobSpec
from codistill.surgery.exits import Exit, WithExits
from codistill.surgery.stages import Taps, cut, shapes, stage_count


def plan(spec: JobSpec, method: BeYourOwnTeacher, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """One phase; raises `ValueError` for a model without at least two stages."""

    def staged() -> Taps:
        return cut(recipe.build_model(), method=method.kind, stages=2)

    taps = shapes(staged, recipe.example(2))
    exits = range(stage_count(taps) - 1)

    def learner(artifacts: Artifacts) -> Learner:
        net = staged()  # first, so that it begins as it would without exits
        width = taps["features"][-1]
        return Learner({"net": WithExits(net, [Exit(taps[f"stage{at}"], width, recipe.classes) for at in exits])})

    def loss(step: Step) -> Loss:
        said = step.show("net")
        task = recipe.task_loss(said, step.batch)
        of_exits = [recipe.task_loss({"logits": said[f"exit{at}"]}, step.batch) for at in exits]
        distill = [pull("kl", [said["logits"]], said[f"exit{at}"], temperature=method.temperature).loss for at in exits]
        features = [losses.squared_distance(said[f"exit{at}_features"], said["features"]) for at in exits]
        labels, teacher, hints = (torch.stack(terms).sum() for terms in (of_exits, distill, features))
        stats = {
            "train/task_loss": task.detach(),
            "train/exits_task_loss": labels.detach(),
            "train/distill_loss": teacher.detach(),
            "train/feature_loss": hints.detach(),
        }
        beside = method.label_weight * labels + method.weight * teacher + method.feature_weight * hints
        return Loss(task + beside, stats)

    return [
        Phase(
            name="train",
            steps=spec.training.steps,
            learner=learner,
            batches=lambda artifacts: batches_of(spec, recipe, replica),
            updates=[Update(loss, trains=("net",))],
            groups=groups(spec.training, {"net": ("net.*",)}),
            surveys=[validation(spec, recipe, "net", {"": "logits", **{f"exit{at}/": f"exit{at}" for at in exits}})],
            export=stripped,
        )
    ]


def stripped(learner: Learner) -> nn.Module:
    """The network as the recipe built it."""
    with_exits = learner["net"]
    assert isinstance(with_exits, WithExits)
    return with_exits.taps.net
