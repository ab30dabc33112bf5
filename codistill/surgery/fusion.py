"""Fusion: one classifier on the last feature maps of several networks, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codistill.batch import Outputs
from codistill.surgery.branches import of_each


class Fusion(nn.Module):
    """From the maps of `nets` networks, [N, channels, H, W] each, to logits [N, classes]: a depthwise 3 x 3 convolution
    of all channels, a 1 x 1 one to as many as one network has, each with BatchNorm and ReLU, the mean over places, a
    linear layer. Vectors and states go through one linear layer with LayerNorm instead, place by place.

    Adds the tap `fused`, its logits.
    """

    def __init__(self, shape: Sequence[int], nets: int, classes: int) -> None:
        super().__init__()
        channels, together = _channels(shape), nets * _channels(shape)
        if len(shape) == 3:
            self.body = nn.Sequential(
                nn.Conv2d(together, together, 3, padding=1, groups=together, bias=False), nn.BatchNorm2d(together),
                nn.ReLU(), nn.Conv2d(together, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes),
            )  # fmt: skip
        else:
            self.body = nn.Sequential(
                nn.Linear(together, channels, bias=False),
                nn.LayerNorm(channels),
                nn.ReLU(),
                nn.Linear(channels, classes),
            )
        self.along = 1 if len(shape) == 3 else -1

    def forward(self, said: Outputs) -> dict[str, Tensor]:
        return {"fused": self.body(torch.cat(of_each(said, "maps"), dim=self.along))}


class Pooled(nn.Module):
    """The plainest of them: BatchNorm and ReLU of all channels, the mean over places, a linear layer. For vectors and
    states LayerNorm instead, and no mean.

    Adds the tap `fused`, its logits.
    """

    def __init__(self, shape: Sequence[int], nets: int, classes: int) -> None:
        super().__init__()
        together = nets * _channels(shape)
        on_maps = len(shape) == 3
        norm = nn.BatchNorm2d(together) if on_maps else nn.LayerNorm(together)
        mean = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if on_maps else []
        self.body = nn.Sequential(norm, nn.ReLU(), *mean, nn.Linear(together, classes))
        self.along = 1 if on_maps else -1

    def forward(self, said: Outputs) -> dict[str, Tensor]:
        return {"fused": self.body(torch.cat(of_each(said, "maps"), dim=self.along))}


def _channels(shape: Sequence[int]) -> int:
    return shape[0] if len(shape) == 3 else shape[-1]
