"""How much memory training took: of the GPU what tensors held, of the machine what the whole process did."""

from __future__ import annotations

import resource
import sys

import torch


class MemoryGauge:
    """Measures from its making on, for the device of one rank."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def tensors_bytes(self) -> int | None:
        """The most that tensors held on a GPU at once; None on the CPU, where nobody counts them."""
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None


def process_bytes() -> int:
    """The most that this process has been in memory with, Python, torch and the data included, and pages that it maps
    from files. Replicas that share a process see each other."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
