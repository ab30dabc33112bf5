"""Early exits: after each stage but the last, a branch to features like the model's own, and a classifier on them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from codistill.surgery.stages import Taps


class Exit(nn.Module):
    """A bottleneck from what a stage gives, [N, *shape], to `features`, and a linear classifier of them.

    Maps [channels, height, width] go through a 3 x 3 convolution with BatchNorm and are averaged over all places;
    states [places, width] and vectors [width] through a linear layer with LayerNorm, place by place.
    """

    def __init__(self, shape: Sequence[int], features: int, classes: int) -> None:
        super().__init__()
        self.branch = _branch(shape, features)
        self.classifier = nn.Linear(features, classes)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        features = self.branch(hidden)
        return features, self.classifier(features)


class WithExits(nn.Module):
    """A staged model and its exits: taps `exit0` (logits), `exit0_features`, `exit1`, ... beside the model's own."""

    def __init__(self, taps: Taps, exits: Sequence[Exit]) -> None:
        super().__init__()
        self.taps = taps
        self.exits = nn.ModuleList(exits)

    def forward(self, view: Tensor) -> dict[str, Tensor]:
        said = self.taps(view)
        for number, leave in enumerate(self.exits):
            said[f"exit{number}_features"], said[f"exit{number}"] = leave(said[f"stage{number}"])
        return said


def _branch(shape: Sequence[int], features: int) -> nn.Module:
    if len(shape) == 3:
        channels = shape[0]
        return nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, features), nn.ReLU(),
        )  # fmt: skip
    return nn.Sequential(nn.Linear(shape[-1], features), nn.LayerNorm(features), nn.ReLU())
