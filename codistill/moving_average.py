"""The exponential moving average of a learner's weights (Polyak averaging as in Tarvainen and Valpola 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor

from codistill.phase import Learner


class MovingAverage:
    """`module` is the average: of the parameters, that is; its buffers are the learner's own.

    torch's `AveragedModel` counts in a tensor on the CPU, which it copies to the GPU in every step, and waits. The
    numbers are the same, and so is what is kept.
    """

    def __init__(self, learner: Learner, decay: float) -> None:
        self.module: Learner = deepcopy(learner)
        self.updates = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, learner: Learner) -> None:
        """After a step of `learner`; the first time, the average is what it is."""
        own: list[Tensor] = [*self.module.parameters()]
        new: list[Tensor] = [*learner.parameters()]
        weight = 1 - self._decay if self.updates else 1.0
        torch._foreach_lerp_(own, new, weight)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        for buffer, newest in zip(self.module.buffers(), learner.buffers(), strict=True):
            buffer.copy_(newest)
        self.updates += 1

    def state_dict(self) -> dict[str, Tensor]:
        kept = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        return {"n_averaged": torch.tensor(self.updates), **kept}

    def load_state_dict(self, kept: Mapping[str, Tensor]) -> None:
        self.updates = int(kept["n_averaged"])
        named = {name: tensor for name, tensor in kept.items() if name != "n_averaged"}
        self.module.load_state_dict({name.removeprefix("module."): tensor for name, tensor in named.items()})
