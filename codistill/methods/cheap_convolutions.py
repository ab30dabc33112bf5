"""Training cheap convolutional networks by online distillation: Xie, Lin, Zhang, Luo 2019, arXiv 1909.13063.

Students 1..n see the same batch. A teacher, which nobody trains before, classifies from their last feature maps F_j
side by side, and teaches each of them:

    z_t = linear(pool(ReLU(BN(concat(F_1, ..., F_n)))))
    L = CE(y, p_t) + sum_j [ CE(y, p_j) + weight * T^2 * KL(p_t^T || p_j^T) ]

The students are cheap by the recipe: `recipe.model.convolution` puts group, depthwise or shift convolutions in the
place of standard ones, and what is exported is that model. This is fusion learning with a plainer teacher that nobody
teaches. The authors' code lets the divergence train the teacher, here the teacher is detached in it; it divides the
divergence by the number of classes as well, here it is the sum over them; and it keeps the student that is best on the
test data, here it is the first. `label_weight` is the factor of every loss on labels but that of the first student.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from codistill.divergence import pull
from codistill.methods.common import one_phase
from codistill.phase import Artifacts, Learner, Loss, Phase, Replica, Step
from codistill.recipes import Recipe
from codistill.schedules import open_schedule
from codistill.spec import CheapConvolutions, JobSpec
from codistill.surgery.branches import Joined, first_net, of_branch, of_each, side_by_side
from codistill.surgery.fusion import Pooled
from codistill.surgery.stages import last_stage


def plan(spec: JobSpec, method: CheapConvolutions, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """One phase; raises `ValueError` for a model that offers no stages."""

    nets = side_by_side(recipe.build_model, recipe.example(2), method=method.kind, branches=method.nets, split=0)
    factor = open_schedule(method.weight_schedule, spec.training.steps)

    def learner(artifacts: Artifacts) -> Learner:
        grown = nets.grow()  # first, so that the exported one begins as it would by itself
        return Learner({"net": Joined(grown, Pooled(nets.taps[last_stage(nets.taps)], method.nets, recipe.classes))})

    def loss(step: Step) -> Loss:
        said = step.show("net")
        tasks = [recipe.task_loss(of_branch(said, k), step.batch) for k in range(method.nets)]
        of_teacher = recipe.task_loss({"logits": said["fused"]}, step.batch)
        distill = [
            pull("kl", [said["fused"]], logits, temperature=method.temperature).loss
            for logits in of_each(said, "logits")
        ]
        labels = torch.stack([*tasks[1:], of_teacher]).sum()
        weight = method.weight * factor(step.index)
        stats = {
            "train/task_loss": tasks[0].detach(),
            "train/teacher_task_loss": of_teacher.detach(),
            "train/distill_loss": distill[0].detach(),
            "distill/weight": torch.tensor(weight),
        }
        return Loss(tasks[0] + method.label_weight * labels + weight * torch.stack(distill).sum(), stats)

    others = {f"net{k}/": f"branch{k}/logits" for k in range(1, method.nets)}
    evaluated = {"": "logits", **others, "teacher/": "fused"}
    return one_phase(spec, recipe, replica, loss, learner=learner, taps=evaluated, export=first_net)
