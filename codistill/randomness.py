"""Random streams are functions of names, not states: there is nothing to checkpoint, and a resumed step draws what
the step never interrupted would have drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Name = int | str
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def stream_seed(*names: Name) -> int:
    """A 63-bit seed that is a function of `names` alone, on every machine and in every version."""
    text = "/".join(f"{type(name).__name__}:{name}" for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*names: Name) -> torch.Generator:
    """A generator on the CPU for the stream of this name."""
    return torch.Generator().manual_seed(stream_seed(*names))


def hashes(ids: Tensor, *names: Name) -> npt.NDArray[np.uint64]:
    """A 64-bit hash [N] of each of `ids` [N] int64 for the stream of this name, one by one the same in any company.

    The numbers are those of SplitMix64 (Steele, Lea, Flood 2014), seeded with the stream: id i gets number i + 1.
    """
    return _split_mix(np.full(len(ids), stream_seed(*names), np.uint64), ids.numpy().astype(np.uint64))


def uniforms(ids: Tensor, count: int, *names: Name) -> Tensor:
    """`count` numbers in [0, 1) for each of `ids` [N] int64: float32 [N, count], one by one as for `hashes`."""
    seeds = hashes(ids, *names)
    numbers = _split_mix(seeds[:, None], np.arange(count, dtype=np.uint64)[None, :])
    return torch.from_numpy((numbers >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24))


def _split_mix(seeds: npt.NDArray[np.uint64], index: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Number `index` (from 0) of the generator seeded with each of `seeds`; the two are broadcast."""
    with np.errstate(over="ignore"):
        state = seeds + (index + np.uint64(1)) * _GOLDEN_GAMMA
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def seed_everything(*names: Name) -> None:
    """Set torch's global generators, on every device, to the stream of this name."""
    seed = stream_seed(*names)
    # Not torch.manual_seed: where there is no GPU it takes three stack traces each time, a millisecond per step.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def unseen(module: nn.Module, mode: Literal["eval", "batch"] = "eval") -> Generator[None]:
    """The one place where a forward leaves no trace: no gradient, no buffer changed, no random number drawn.

    In mode `eval` every layer is in evaluation. In mode `batch` normalisation uses the batch's own statistics, without
    adding them to its running ones. Training flags are as before afterwards.
    """
    flags = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    if mode == "batch":
        for layer in _batch_norms(module):
            layer.training = True
    try:
        with torch.no_grad(), untracked(module), torch.random.fork_rng(devices=_cuda_devices(module)):
            yield
    finally:
        for layer, flag in flags:
            layer.training = flag


@contextmanager
def untracked(module: nn.Module) -> Generator[None]:
    """Normalisation of `module` by the batch's own statistics does not add them to its running ones: for a forward that
    repeats one that did."""
    norms = [layer for layer in _batch_norms(module) if layer.training]
    tracking = [layer.track_running_stats for layer in norms]
    for layer in norms:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer, tracked in zip(norms, tracking, strict=True):
            layer.track_running_stats = tracked


def _batch_norms(module: nn.Module) -> list[BatchNorm]:
    return [layer for layer in module.modules() if isinstance(layer, BatchNorm)]


def _cuda_devices(module: nn.Module) -> list[int]:
    return sorted({parameter.get_device() for parameter in module.parameters() if parameter.is_cuda})
