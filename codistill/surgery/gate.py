"""A gate that mixes branches: which of them to trust, for each sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codistill.batch import Outputs
from codistill.surgery.branches import of_each


class Gate(nn.Module):
    """From the trunk's maps [N, channels, H, W], vectors [N, width] or states [N, L, width] to weights of the branches,
    [N, branches] or [N, L, branches], which add up to 1: softmax(ReLU(BN(linear(mean over places)))). States have
    weights of their own at each place, since a mean over them would look ahead.

    Adds taps `gate`, the weights, and `ensemble`, the branches' logits so mixed.
    """

    def __init__(self, shape: Sequence[int], branches: int) -> None:
        super().__init__()
        self.on_maps = len(shape) == 3
        self.linear = nn.Linear(shape[0] if self.on_maps else shape[-1], branches)
        self.norm = nn.BatchNorm1d(branches)

    def weights(self, trunk: Tensor) -> Tensor:
        scores = self.linear(trunk.flatten(2).mean(-1) if self.on_maps else trunk)
        normal = self.norm(scores.flatten(0, -2)).view_as(scores)
        return F.softmax(F.relu(normal), dim=-1, dtype=torch.float32)

    def forward(self, said: Outputs) -> dict[str, Tensor]:
        gate = self.weights(said["trunk"])
        logits = torch.stack(of_each(said, "logits"), dim=-1)
        return {"gate": gate, "ensemble": (logits * gate.unsqueeze(-2)).sum(-1)}
