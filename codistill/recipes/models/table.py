"""A network for rows of categories and numbers: an embedding per category column, then fully connected layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class TableNet(nn.Module):
    """Maps rows [N, columns] float32, the codes of each category column first and then the numbers as they are, to taps
    `features` [N, width] and `logits` [N, 2] (no, yes).

    `categories` are the numbers of codes of each category column, `mean` and `std` those of the numbers in training.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        categories: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        embedding: int,
        width: int,
        layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(codes, embedding) for codes in categories)
        # Neither trained nor saved: they belong to the data, not to the weights that replicas exchange.
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        body: list[nn.Module] = []
        before = embedding * len(categories) + len(mean)
        for _ in range(layers):
            body += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(dropout)]
            before = width
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(before, 2)

    def enter(self, rows: Tensor) -> Tensor:
        """What the first stage is shown: embeddings and numbers side by side."""
        codes = rows[:, : len(self.embeddings)].long()
        embedded = [embedding(codes[:, place]) for place, embedding in enumerate(self.embeddings)]
        numbers = (rows[:, len(self.embeddings) :] - self.mean) / self.std
        return torch.cat([*embedded, numbers], dim=1)

    def stages(self) -> list[nn.Module]:
        """A hidden layer each, with what belongs to it."""
        return [self.body[first : first + 3] for first in range(0, len(self.body), 3)]

    def leave(self, features: Tensor) -> dict[str, Tensor]:
        """From what the last stage gives to the taps."""
        return {"features": features, "logits": self.head(features)}

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        return self.leave(self.body(self.enter(rows)))


def build(config: dict[str, Any]) -> TableNet:
    """The model of a `config.json`."""
    return TableNet(**config["model"])
