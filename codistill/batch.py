"""What a model is shown, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Outputs = Mapping[str, Tensor]
"""Named taps of one forward pass; `logits` [N, classes] is always among them."""


@dataclass(frozen=True)
class Batch:
    """N samples.

    `ids` [N] int64 names each sample within the data set for ever. `y` [N] int64 holds the labels. `views` shows the
    same samples in one or more ways (`x` is the usual one), each [N, ...]. `also` holds other samples beside them.
    """

    ids: Tensor
    y: Tensor
    views: Mapping[str, Tensor]
    also: Mapping[str, Batch] = field(default_factory=dict[str, "Batch"])

    def __len__(self) -> int:
        return self.ids.shape[0]

    def to(self, device: torch.device) -> Batch:
        return Batch(
            ids=self.ids.to(device, non_blocking=True),
            y=self.y.to(device, non_blocking=True),
            views={name: view.to(device, non_blocking=True) for name, view in self.views.items()},
            also={name: batch.to(device) for name, batch in self.also.items()},
        )
