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
        return _fallen_on(_edges(masses), numbers)
    short = -masses.shape[-1] % BLOCK_CLASSES
    if short:  # else padding would be a copy of all
        masses = F.pad(masses, (0, short))
    blocks = masses.unflatten(-1, (-1, BLOCK_CLASSES))
    edges = _edges(blocks.sum(-1))
    block = _fallen_on(edges, numbers)
    below, above = edges.gather(-1, block), edges.gather(-1, block + 1)
    # Below 1 after rounding too: the number's place and what is above it differ by a last digit, hence what is left.
    left = (numbers.double() * edges[..., -1:] - below) / (above - below)
    rows = torch.arange(len(blocks), device=blocks.device).unsqueeze(-1)
    inside = _fallen_on(_edges(blocks[rows, block.to(blocks.device)]), left.unsqueeze(-1))
    return block * BLOCK_CLASSES + inside.squeeze(-1)


def _edges(masses: Tensor) -> Tensor:
    """Where each of `masses` [..., parts] begins and the last one ends when they lie side by side, [..., parts + 1]."""
    # On the CPU, since sums in order may come out differently each time on a GPU.
    return F.pad(masses.cpu().double().cumsum(-1), (1, 0))


def _fallen_on(edges: Tensor, numbers: Tensor) -> Tensor:
    """The part that each of `numbers` [..., draws], as a share of the whole, falls on; some part where all is NaN."""
    at = numbers.double() * edges[..., -1:]
    return (torch.searchsorted(edges, at, right=True) - 1).clamp_(max=edges.shape[-1] - 2)
