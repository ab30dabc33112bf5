"""What a model is shown, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

Outputs = Mapping[str, Tensor]
"""Named taps of one forward pass; `logits` [N, classes] is always among them."""


def as_outputs(said: Any) -> Outputs:
    """What a model answered as named taps: logits alone, a mapping that has them, or an object with that attribute.

    Raises `TypeError` for anything else.
    """
    if isinstance(said, Tensor):
        return {"logits": said}
    if isinstance(said, Mapping) and "logits" in said:
        return cast(Outputs, said)
    logits = getattr(said, "logits", None)
    if isinstance(logits, Tensor):
        return {"logits": logits}
    raise TypeError(
        f"the model gave {type(said).__name__}; it must give logits: a tensor, a mapping with 'logits', or an object"
        " with an attribute of that name"
    )


@dataclass(frozen=True)
class Batch:
    """N samples.

    `ids` [N] int64 names each sample within the data set for ever. `y` int64 holds the labels, [N] or, one for each
    place of a sequence, [N, L]. `views` shows the same samples in one or more ways (`x` is the usual one), each
    [N, ...].
    """

    ids: Tensor
    y: Tensor
    views: Mapping[str, Tensor]

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in (self.ids, self.y, *self.views.values()))

    def split(self, parts: int) -> list[Batch]:
        """As many batches of the same size."""
        if parts == 1:
            return [self]
        cut = {name: view.chunk(parts) for name, view in self.views.items()}
        pairs = zip(self.ids.chunk(parts), self.y.chunk(parts), strict=True)
        return [
            Batch(ids=ids, y=y, views={name: views[at] for name, views in cut.items()})
            for at, (ids, y) in enumerate(pairs)
        ]

    def pin_memory(self) -> Batch:
        """In page-locked memory, from which a copy to a GPU need not wait."""
        return Batch(
            ids=self.ids.pin_memory(),
            y=self.y.pin_memory(),
            views={name: view.pin_memory() for name, view in self.views.items()},
        )

    def to(self, device: torch.device) -> Batch:
        return Batch(
            ids=self.ids.to(device, non_blocking=True),
            y=self.y.to(device, non_blocking=True),
            views={name: view.to(device, non_blocking=True) for name, view in self.views.items()},
        )
