"""Critics of feature maps, and transitions that bring maps of several networks to one width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from codistill.surgery.stages import Staged


class Transition(nn.Module):
    """One linear map at each place: what a stage gives, [N, *shape], to `channels` of them."""

    def __init__(self, shape: Sequence[int], channels: int) -> None:
        super().__init__()
        self.map = nn.Conv2d(shape[0], channels, 1) if len(shape) == 3 else nn.Linear(shape[-1], channels)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.map(hidden)


class Exhibit(nn.Module):
    """A staged model `net`, and one more tap: `exhibit`, what its last stage gives (`shape` for one sample) through a
    transition to `channels`. Peers that are sent both can show it to critics of their own."""

    def __init__(self, net: nn.Module, shape: Sequence[int], channels: int) -> None:
        super().__init__()
        self.net = net
        self.transition = Transition(shape, channels)

    def forward(self, view: Tensor) -> dict[str, Tensor]:
        staged = cast(Staged, self.net)
        hidden = staged.enter(view)
        for stage in staged.stages():
            hidden = stage(hidden)
        return {"exhibit": self.transition(hidden), **staged.leave(hidden)}


class Critic(nn.Module):
    """How real features look: from transitions of maps [N, channels, H, W], states [N, L, channels] or vectors
    [N, channels] to a number in (0, 1) for each sample, [N]. Without BatchNorm, which would mix real and made-up
    batches."""

    def __init__(self, shape: Sequence[int], channels: int) -> None:
        super().__init__()
        self.on_maps = len(shape) == 3
        first = nn.Conv2d(channels, channels, 3, padding=1) if self.on_maps else nn.Linear(channels, channels)
        self.body = nn.Sequential(first, nn.LeakyReLU(0.2))
        self.head = nn.Linear(channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.body(features)
        pooled = (
            hidden.flatten(2).mean(-1) if self.on_maps else hidden.flatten(1, -2).mean(1) if hidden.ndim > 2 else hidden
        )
        return self.head(pooled).squeeze(-1).sigmoid()
