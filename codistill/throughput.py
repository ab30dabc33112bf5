"""How fast a replica trains, and how much of the hardware that uses."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from codistill.batch import Batch
from codistill.recipes.base import Recipe

PEAK_FLOPS = {
    # Dense products on tensor cores, from the makers' data sheets: (bf16 and fp16, float32 without TF32).
    "V100": (125e12, 15.7e12),
    "T4": (65e12, 8.1e12),
    "A10": (125e12, 31.2e12),
    "A100": (312e12, 19.5e12),
    "L4": (121e12, 30.3e12),
    "L40S": (362e12, 91.6e12),
    "H100 PCIe": (756e12, 51e12),
    "H100": (989e12, 67e12),
    "H200": (989e12, 67e12),
}
TRAINING_FACTOR = 3
"""A backward pass is about two forward passes of work."""


@dataclass(frozen=True)
class Throughput:
    """From the seconds of a step to rates."""

    batch_size: int
    unit: str = "samples"
    units_per_sample: int = 1
    flops_per_step: float | None = None
    """Of the model's own training; what teachers cost is overhead, as the definition of MFU has it."""
    peak_flops: float | None = None
    """Of all ranks together, per second."""

    def rates(self, step_s: float) -> dict[str, float]:
        values = {"time/step_s": step_s, "perf/samples_per_s": self.batch_size / step_s}
        if self.unit != "samples":
            values[f"perf/{self.unit}_per_s"] = self.batch_size * self.units_per_sample / step_s
        if self.flops_per_step is not None and self.peak_flops is not None:
            values["perf/mfu"] = self.flops_per_step / step_s / self.peak_flops
        return values


def peak_flops_of(device_name: str, precision: str) -> float | None:
    """Of one device, per second; None when it is not in the table."""
    words = set(re.split(r"[^A-Za-z0-9]+", device_name))
    known = [name for name in PEAK_FLOPS if set(name.split()) <= words]
    if not known:
        return None
    half, single = PEAK_FLOPS[max(known, key=len)]
    return single if precision == "fp32" else half


def forward_flops(model: nn.Module, example: Batch) -> int:
    """Multiplications and additions, counted as two, of one forward pass of `example`; computed without computing."""
    with torch.device("meta"):
        shown = {name: view.to("meta") for name, view in example.views.items()}
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.to("meta")(shown["x"])
    return int(counter.get_total_flops())


def in_tf32(model: nn.Module) -> bool:
    """Whether torch computes some products of float32 tensors in TF32: convolutions unless told otherwise, those of
    matrices when told."""
    convolves = any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules())  # pyright: ignore[reportPrivateUsage]
    of_convolutions = torch.backends.cudnn.conv.fp32_precision  # pyright: ignore[reportAttributeAccessIssue]
    return torch.backends.cuda.matmul.fp32_precision == "tf32" or (convolves and of_convolutions == "tf32")


def throughput_of(recipe: Recipe, *, batch_size: int, ranks: int, device: torch.device, precision: str) -> Throughput:
    """Of a replica of this recipe; with MFU where the device's peak is known. In `fp32` that is the one without TF32,
    so there is no MFU of a model part of which torch computes in TF32."""
    plain = Throughput(batch_size, recipe.unit, recipe.units_per_sample)
    peak = peak_flops_of(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
    if peak is None:
        return plain
    model = recipe.build_model()
    if precision == "fp32" and in_tf32(model):
        return plain
    flops = float(TRAINING_FACTOR * forward_flops(model, recipe.example(1)) * batch_size)
    return replace(plain, flops_per_step=flops, peak_flops=peak * ranks)
