"""Churn: how much of what a model predicts changes when another takes its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn

from codistill.batch import Batch, as_outputs
from codistill.losses import IGNORED
from codistill.phase import Learner, Survey
from codistill.randomness import unseen


def changes(logits: Tensor, before: Tensor) -> dict[str, float]:
    """Of logits [..., classes] of two models: how many predictions, in how many of them another class is the likeliest,
    and the sum of the probability that has moved, half of the absolute differences."""
    new, old = (said.float().reshape(-1, said.shape[-1]) for said in (logits, before))
    return {
        "count": float(len(new)),
        "changed": float((new.argmax(-1) != old.argmax(-1)).sum()),
        "moved": float((new.softmax(-1) - old.softmax(-1)).abs().sum() / 2),
    }


def churn_survey(
    batches: Callable[[], Iterable[Batch]], incumbent: Callable[[], nn.Module], *, every_steps: int, part: str = "net"
) -> Survey:
    """Against `incumbent`, where there is a label: `eval/churn`, the share of predictions whose likeliest class is
    another, and `eval/soft_churn`, the probability that has moved in the mean. Both are 0 to 1."""

    def measure(learner: Learner, batch: Batch) -> Mapping[str, float]:
        said: list[Tensor] = []
        for module in (learner[part], incumbent()):
            with unseen(module):
                said.append(as_outputs(module(batch.views["x"]))["logits"][batch.y != IGNORED])
        return changes(*said)

    def report(total: Mapping[str, float]) -> Mapping[str, float]:
        return {
            "eval/churn": total["changed"] / total["count"],
            "eval/soft_churn": total["moved"] / total["count"],
        }

    return Survey("churn", every_steps, batches, measure, report)
