"""Draws from distributions by numbers that are given: the inverse of the distribution function.

The same numbers give the same draws, in whatever company, on one machine. Over many classes only the masses of blocks
are added up in float64; of the classes themselves, only those of a block that a number falls on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ONE_LEVEL_UP_TO_CLASSES = 2048
"""Beyond, blocks are less work."""
BLOCK_CLASSES = 32


def drawn(masses: Tensor, numbers: Tensor) -> Tensor:
    """Of `masses` [rows, classes] float32, none below 0, the classes that `numbers` [rows, draws] in [0, 1) fall on:
    [rows, draws] int64 on the CPU. `masses` need not add up to 1. A class without mass is never drawn; of a row in
    which not all is finite, or all is 0, what is drawn means nothing."""
    if masses.shape[-1] <= ONE_LEVEL_UP_TO_CLASSES:
        return _fallen_on(masses, numbers)[0]
    short = -masses.shape[-1] % BLOCK_CLASSES
    if short:  # else padding would be a copy of all
        masses = F.pad(masses, (0, short))
    blocks = masses.unflatten(-1, (-1, BLOCK_CLASSES))
    block, left = _fallen_on(blocks.sum(-1), numbers)
    rows = torch.arange(len(blocks), device=blocks.device).unsqueeze(-1)
    inside, _ = _fallen_on(blocks[rows, block.to(blocks.device)], left.unsqueeze(-1))
    return block * BLOCK_CLASSES + inside.squeeze(-1)


def _fallen_on(masses: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Of `masses` [..., parts] the part that each of `numbers` [..., draws] falls on, and how far into it, 0 to 1."""
    # On the CPU, since sums in order may come out differently each time on a GPU.
    heights = masses.cpu().double().cumsum(-1)
    at = numbers.double() * heights[..., -1:]
    part = torch.searchsorted(heights, at, right=True).clamp_(max=masses.shape[-1] - 1)
    edges = F.pad(heights, (1, 0))
    below, above = edges.gather(-1, part), edges.gather(-1, part + 1)
    # Below 1 after rounding too: at < above differ by a last place, and so do their distances from below.
    return part, (at - below) / (above - below)
