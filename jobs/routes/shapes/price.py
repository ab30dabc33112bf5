"""An estimate as it stands in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

_SPREAD: dict[str, Any] = {"low": 0.021, "median": 0.024, "high": 0.031}
_SPEED: dict[str, Any] = {
    "hardware": "NVIDIA A100-SXM4-80GB",
    "runs": 4,
    "step_s": _SPREAD,
    "process_bytes_per_rank": 702_000_000,
    "seconds": {"low": 21.4, "median": 24.0, "high": 29.8},
    "controls_seconds": {"low": 0.0, "median": 0.0, "high": 0.0},
}
ESTIMATE_EXAMPLE: dict[str, Any] = {
    "parameters": 9610,
    "memory_bytes_per_rank": 512_000,
    "node_bytes_per_rank": 537_500_000,
    "steps": 600,
    "exchanges": 12,
    "bytes_per_exchange": 38_440,
    "bytes_received": 922_560,
    "controls_steps": 0,
    "speeds": [_SPEED],
    "unknown": [],
}


class Spread(BaseModel):
    """Of some runs: the least, the one in the middle, the most."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SPREAD]})

    low: float
    median: float
    high: float


class Speed(BaseModel):
    """How long it would take on hardware where jobs like it have trained."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SPEED]})

    hardware: str | None
    runs: int
    """On which this stands."""
    step_s: Spread
    """Seconds per step, evaluations and checkpoints included."""
    process_bytes_per_rank: int | None
    """The most that a process of them was in memory with: tensors on the CPU, data and framework."""
    seconds: Spread
    """Of the whole job from its start, controls included."""
    controls_seconds: Spread
    """Of them, what the controls add."""


class Estimate(BaseModel):
    """What a job will take; null where it is not known, and `unknown` says why."""

    model_config = ConfigDict(json_schema_extra={"examples": [ESTIMATE_EXAMPLE]})

    parameters: int | None
    memory_bytes_per_rank: int | None
    """What its tensors hold while it trains; on a GPU, what they hold there."""
    node_bytes_per_rank: int | None = None
    """What a rank reserves of its node's memory: what its process takes at most, but for what lies on a GPU."""
    steps: int
    """That each replica still has to make."""
    exchanges: int
    """How often each replica publishes."""
    bytes_per_exchange: int | None
    """That a replica receives."""
    bytes_received: int | None
    """By all replicas in all exchanges."""
    controls_steps: int
    """That the controls add, for each replica."""
    speeds: list[Speed]
    """One entry for each kind of hardware on which jobs like it have trained to their end."""
    unknown: list[str]
