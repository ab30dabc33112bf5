"""How far a replica is and how long it will take, out of its heartbeat."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from codistill.run_dir import RunDir
from codistill.words import duration

STALE_S = 5.0
OVER = frozenset({"ended", "failed"})
"""States of a heartbeat after which none follows."""


def progress_lines(run: RunDir, fence: int) -> list[str]:
    """How far each replica of an attempt is, for people."""
    return [progress_line(beat, now=time.time()) for beat in run.read_heartbeats(fence).values()]


def progress_line(beat: Mapping[str, Any], *, now: float) -> str:
    """E.g. `replica-0  step 120/600  41.2 steps/s  12 s left  loss 0.412  accuracy 0.953  hears replica-1 v100
    (lag 12, offset 20)`. Of a replica that is silent no time left is told: nobody knows."""
    silent = beat["state"] not in OVER and now - beat["time"] > STALE_S
    parts = [f"{beat['replica']}", f"step {beat['step']}/{beat['steps']}"]
    if beat["incarnation"] > 0:
        parts.append(f"incarnation {beat['incarnation']}")
    speed, left_s = steps_per_s(beat), time_left_s(beat)
    if speed is not None and left_s is not None and not silent:
        parts += [f"{_three_digits(speed)} steps/s", f"{duration(left_s)} left"]
    if beat["loss"] is not None:
        parts.append(f"loss {beat['loss']:.3f}")
    accuracy = beat["metrics"].get("eval/accuracy")
    if accuracy is not None:
        parts.append(f"accuracy {accuracy:.3f}")
    heard = [
        f"{t['teacher']} v{t['version']} (lag {'?' if t['lag_steps'] is None else t['lag_steps']},"
        f" offset {t['offset_steps']}{', in quarantine' if t.get('quarantined') else ''})"
        for t in beat["teachers"]
    ]
    if heard:
        parts.append("hears " + ", ".join(heard))
    if beat["state"] != "training":
        parts.append(str(beat["state"]))
    if silent:
        parts.append(f"silent for {now - beat['time']:.0f} s")
    return "  ".join(parts)


def steps_per_s(beat: Mapping[str, Any]) -> float | None:
    """Mean speed of this incarnation, evaluations and checkpoints included; None before it has made two steps.

    `first_step` is the step from which the incarnation went on, and `first_step_at` when it had made its first: so all
    steps but one lie between that moment and `last_step_at`. A heartbeat without `first_step` tells the speed of a
    replica that has never been restarted only.
    """
    first = beat.get("first_step")
    if first is None and beat.get("fence") == 1 and beat["incarnation"] == 0:
        first = 0
    began_at, last_at = beat.get("first_step_at"), beat.get("last_step_at")
    if first is None or began_at is None or last_at is None or last_at <= began_at:
        return None
    made = beat["step"] - first - 1
    return made / (last_at - began_at) if made > 0 else None


def time_left_s(beat: Mapping[str, Any]) -> float | None:
    """Seconds of training left at the speed so far; None unless the replica trains and its speed is known."""
    speed = steps_per_s(beat)
    if speed is None or beat["state"] != "training":
        return None
    return max(0, beat["steps"] - beat["step"]) / speed


def _three_digits(value: float) -> str:
    """41.2, 0.0312, 1234: three digits that count, never an exponent."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 4
    return f"{value:.{digits}f}"
