"""Attention among networks: whom each of them listens to, for each sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codistill.batch import Outputs
from codistill.surgery.branches import of_each


class Attention(nn.Module):
    """alpha_ab = softmax over b of (W_L h_a) . (W_E h_b), of features h [..., width] of m networks: [..., m, m], rows
    add up to 1. Two projections without bias to an eighth of the width, so that a may listen to b and b not to a.

    Adds the tap `attention`, of all branches but the first, which leads and is not listened to.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = max(1, width // 8)
        self.listens = nn.Linear(width, narrow, bias=False)
        self.speaks = nn.Linear(width, narrow, bias=False)

    def weights(self, features: Sequence[Tensor]) -> Tensor:
        each = torch.stack(list(features), dim=-2)
        return self.among(each, each)

    def among(self, listeners: Tensor, speakers: Tensor) -> Tensor:
        """Of listeners [..., k, width] among speakers [..., m, width]: [..., k, m]."""
        energy = self.listens(listeners) @ self.speaks(speakers).transpose(-1, -2)
        alpha = F.softmax(energy, dim=-1, dtype=torch.float32)
        return alpha.clamp(min=torch.finfo(alpha.dtype).tiny)  # whose logarithm has a gradient

    def forward(self, said: Outputs) -> dict[str, Tensor]:
        return {"attention": self.weights(of_each(said, "features")[1:])}


class Listener(nn.Module):
    """Whom one network listens to, of others that have projections of their own or none: from its features [..., width]
    and those of m speakers to its row of `Attention`, [..., m]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = Attention(width)

    def forward(self, own: Tensor, speakers: Sequence[Tensor]) -> Tensor:
        return self.attention.among(own.unsqueeze(-2), torch.stack(list(speakers), dim=-2)).squeeze(-2)
