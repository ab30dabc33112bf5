"""What a job will take, and what it took, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codistill.words import duration, size
from jobs.cli.output import plain


def price_lines(estimate: Mapping[str, Any] | None, took: Mapping[str, Any] | None = None) -> list[str]:
    """The estimate, and beside it what it came to."""
    lines: list[str] = []
    if estimate is not None:
        lines += [f"will take: {part}" for part in [_sizes(estimate), *map(_speed, estimate["speeds"])] if part]
        lines += [f"unknown: {plain(why)}" for why in estimate["unknown"]]
    if took is not None:
        lines.append(f"took: {_taken(took)}")
    return lines


def _sizes(estimate: Mapping[str, Any]) -> str:
    if estimate["parameters"] is None:
        return ""
    parts = [f"{estimate['parameters']:,} parameters", f"{size(estimate['memory_bytes_per_rank'])} of tensors per rank"]
    if estimate["exchanges"]:
        parts.append(f"{estimate['exchanges']} exchanges of {size(estimate['bytes_per_exchange'])} per replica")
    return ", ".join(parts)


def _speed(speed: Mapping[str, Any]) -> str:
    seconds, runs, controls_s = speed["seconds"], speed["runs"], speed["controls_seconds"]["median"]
    spread = "" if runs == 1 else f" ({duration(seconds['low'])} to {duration(seconds['high'])})"
    controls = f", {duration(controls_s)} of it for controls" if controls_s else ""
    source = f"from {runs} run{'' if runs == 1 else 's'} on {plain(speed['hardware'] or 'unknown hardware')}"
    process = "" if speed["process_bytes_per_rank"] is None else f", {size(speed['process_bytes_per_rank'])} a process"
    return f"{duration(seconds['median'])}{spread}{controls}, {step(speed['step_s']['median'])}{process}: {source}"


def _taken(took: Mapping[str, Any]) -> str:
    parts = [duration(took["seconds"])]
    if took["step_s"] is not None:
        parts.append(step(took["step_s"]))
    if took["memory_bytes_per_rank"] is not None:
        parts.append(f"{size(took['memory_bytes_per_rank'])} of tensors per rank")
    if took["process_bytes_per_rank"] is not None:
        parts.append(f"{size(took['process_bytes_per_rank'])} a process")
    parts.append(f"{size(took['bytes_received'])} received")
    return ", ".join(parts) + (f", on {plain(took['hardware'])}" if took["hardware"] else "")


def step(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms a step" if seconds < 1 else f"{seconds:.3g} s a step"
