"""Whether an attempt must stop: one rule for the local runner and for the driver on Ray. Pure."""

from __future__ import annotations

from collections.abc import Collection

from codistill.outcome import Reason
from codistill.spec import JobSpec


def overdue(spec: JobSpec, elapsed_s: float, unstarted: Collection[str]) -> Reason | None:
    """Why the attempt must stop `elapsed_s` after its start, while `unstarted` replicas have not made a step."""
    limits = spec.limits
    if elapsed_s > limits.max_runtime_s:
        return Reason("max_runtime", f"it ran longer than limits.max_runtime_s = {limits.max_runtime_s:g}")
    if unstarted and elapsed_s > limits.start_deadline_s:
        names = ", ".join(sorted(unstarted))
        return Reason(
            "start_deadline",
            f"{names} had not made a first step after limits.start_deadline_s = {limits.start_deadline_s:g}:"
            " there may be too little room, or the limit may be too low",
        )
    return None
