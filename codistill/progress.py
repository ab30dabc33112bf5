"""One line per replica, out of its heartbeat."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from codistill.run_dir import RunDir

STALE_S = 5.0


def progress_lines(run: RunDir, fence: int) -> list[str]:
    """How far each replica of an attempt is, for people."""
    return [progress_line(beat, now=time.time()) for beat in run.read_heartbeats(fence).values()]


def progress_line(beat: Mapping[str, Any], *, now: float) -> str:
    """E.g. `replica-0  step 120/600  loss 0.412  accuracy 0.953  learns from replica-1 v100 (lag 12, offset 20)`."""
    parts = [f"{beat['replica']}", f"step {beat['step']}/{beat['steps']}"]
    if beat["incarnation"] > 0:
        parts.append(f"incarnation {beat['incarnation']}")
    if beat["loss"] is not None:
        parts.append(f"loss {beat['loss']:.3f}")
    accuracy = beat["metrics"].get("eval/accuracy")
    if accuracy is not None:
        parts.append(f"accuracy {accuracy:.3f}")
    heard = [
        f"{t['teacher']} v{t['version']} (lag {'?' if t['lag_steps'] is None else t['lag_steps']},"
        f" offset {t['offset_steps']})"
        for t in beat["teachers"]
    ]
    if heard:
        parts.append("learns from " + ", ".join(heard))
    if beat["state"] != "training":
        parts.append(str(beat["state"]))
    if beat["state"] != "ended" and now - beat["time"] > STALE_S:
        parts.append(f"silent for {now - beat['time']:.0f} s")
    return "  ".join(parts)
