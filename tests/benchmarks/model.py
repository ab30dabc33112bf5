"""A model of about 100 MB with the many small and few large arrays of a transformer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from codistill.exchange.snapshot import Array

WIDTH, LAYERS, WORDS = 512, 7, 6000


def big_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(WORDS, WIDTH), *[Block() for _ in range(LAYERS)])


class Block(nn.Module):
    """Attention and a feed-forward part, without residuals' fuss."""

    def __init__(self) -> None:
        super().__init__()
        self.normalise = nn.LayerNorm(WIDTH)
        self.attend = nn.Linear(WIDTH, 3 * WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.widen = nn.Linear(WIDTH, 4 * WIDTH)
        self.narrow = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.attend(self.normalise(x)).chunk(3, dim=-1)
        x = x + self.project(nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.narrow(torch.relu(self.widen(x)))


def num_bytes(arrays: Mapping[str, Array]) -> int:
    return sum(array.nbytes for array in arrays.values())
