"""The losses of a method on chosen logits: parts that say what they are told, and the step that shows them a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from codistill.batch import Batch, Outputs
from codistill.phase import Step

S, T = [1.0, 0.0, -1.0], [2.0, 0.5, -1.0]
"""The logits of the golden numbers; the label is 0."""
BATCH = Batch(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), {"x": torch.zeros(1, 1)})


class Says(nn.Module):
    """Answers the same taps to everything; each is a parameter."""

    def __init__(self, **taps: Sequence[float] | Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.taps = nn.ParameterDict({name: torch.tensor([tap]).double() for name, tap in taps.items()})

    def forward(self, view: Tensor) -> Outputs:
        return dict(self.taps.items())


def step_of(targets: Mapping[str, Sequence[Outputs]] | None = None, **parts: nn.Module) -> Step:
    learner = nn.ModuleDict(parts)
    return Step(0, BATCH, learner, dict(learner.items()), targets or {}, {})
