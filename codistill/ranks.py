"""The processes that train one replica together, and what they agree on.

A replica of one rank has no process group, and everything here returns at once. With several, gradients travel through
torch's default group (NCCL between GPUs); what is decided travels through a gloo group beside it, which needs no GPU
and therefore makes none wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

TIMEOUT = timedelta(minutes=10)
"""Longest wait for another rank; the rank that dies is noticed at once, one that hangs after this."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its replica. Every method is called by all of them, in the same order."""

    rank: int = 0
    count: int = 1
    control: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes: records, checkpoints, snapshots, the export."""
        return self.rank == 0

    @staticmethod
    def joined() -> Ranks:
        """The ranks of torch's default process group; one alone when there is none."""
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return Ranks()
        control = dist.new_group(backend="gloo", timeout=TIMEOUT)
        assert isinstance(control, dist.ProcessGroup)  # else this process is not in it
        return Ranks(dist.get_rank(), dist.get_world_size(), control)

    def any(self, mine: bool) -> bool:
        """Whether it is so on any rank."""
        if self.count == 1:
            return mine
        flag = torch.tensor([int(mine)])
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.control)
        return bool(flag.item())

    def from_first(self, value: Any) -> Any:
        """What rank 0 gives, a JSON value; the others' is not looked at."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, mine: Sequence[int]) -> list[list[int]]:
        """The integers of every rank, by rank; as many from each."""
        if self.count == 1:
            return [list(mine)]
        own = torch.tensor(mine, dtype=torch.int64)
        every = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(every, own, group=self.control)
        return [numbers.tolist() for numbers in every]

    def gather_bytes(self, mine: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
        """The bytes [n] of every rank, by rank, however many each has."""
        if self.count == 1:
            return [mine]
        sizes = [size for (size,) in self.gather([mine.size])]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: mine.size] = torch.from_numpy(mine.copy())
        every = [torch.empty_like(padded) for _ in range(self.count)]
        dist.all_gather(every, padded, group=self.control)
        return [whole[:size].numpy() for whole, size in zip(every, sizes, strict=True)]

    def add_up(self, mine: Tensor) -> Tensor:
        """The sum of the ranks' tensors, all of one shape, on this rank's device; the same on each, bit for bit, and
        without gradient."""
        if self.count == 1:
            return mine
        total = mine.detach().to("cpu", copy=True)
        dist.all_reduce(total, group=self.control)
        return total.to(mine.device)

    def totals(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over the ranks; what a rank does not name counts as 0."""
        if self.count == 1:
            return dict(values)
        every: list[dict[str, float]] = [{}] * self.count
        dist.all_gather_object(every, dict(values), group=self.control)
        return {name: sum(one.get(name, 0.0) for one in every) for one in every for name in one}

    def means(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means over the ranks of scalars, of the same names on each, on the device they are on."""
        if self.count == 1:
            return dict(values)
        totals = self.totals({name: float(value) for name, value in values.items()})
        return {name: torch.tensor(totals[name] / self.count, device=values[name].device) for name in values}

    def average_buffers(self, modules: Iterable[nn.Module]) -> None:
        """Make the floating-point buffers that a module keeps the mean of all ranks', in place.

        Each rank's normalisation statistics come from its own share of the data; before a model leaves its replica
        (published, saved, exported) they become one.
        """
        if self.count == 1:
            return
        buffers = [buffer for module in modules for buffer in _statistics(module)]
        if not buffers:
            return
        flat = torch.cat([buffer.detach().reshape(-1).to("cpu", torch.float32) for buffer in buffers])
        dist.all_reduce(flat, group=self.control)
        flat /= self.count
        with torch.no_grad():
            for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
                buffer.copy_(mean.reshape(buffer.shape))


def _statistics(module: nn.Module) -> list[Tensor]:
    kept = module.state_dict(keep_vars=True)
    return [buffer for name, buffer in module.named_buffers() if name in kept and buffer.is_floating_point()]


ALONE = Ranks()


def join_group(init_method: str, rank: int, count: int, *, on_gpu: bool) -> Ranks:
    """Meet the other ranks of the replica at `init_method` (as torch's `init_process_group` takes it)."""
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", init_method=init_method, rank=rank, world_size=count, timeout=TIMEOUT
    )
    return Ranks.joined()
