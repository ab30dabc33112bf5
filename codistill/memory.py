"""How much memory training took of its process: the most, beyond what was there before."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

_SELF = Path("/proc/self")


class MemoryGauge:
    """Measures from its making on, for one device. On the CPU the process as a whole is seen, so several replicas in
    one process see each other, and pages mapped from files count."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
            return
        with suppress(OSError):
            (_SELF / "clear_refs").write_text("5")  # the peak begins anew
        self._before = _status_bytes("VmRSS")

    def peak_bytes(self) -> int | None:
        """Bytes at the highest point, beyond what was there at the beginning; None where the system does not tell."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - (self._before or 0)
        peak = _status_bytes("VmHWM")
        return None if peak is None or self._before is None else max(0, peak - self._before)


def _status_bytes(key: str) -> int | None:
    """A size out of /proc/self/status; None where there is none, as on macOS."""
    try:
        lines = (_SELF / "status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(found[0]) * 1024 if found else None
