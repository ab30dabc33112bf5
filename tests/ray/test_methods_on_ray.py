"""Methods of several parts, updates and phases on Ray: killed in each phase, they end as if they had not been."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from codistill.run_dir import RunDir
from tests.ray.running import beat, beside, create, spec_of, until
from tests.support import final_weights, fingerprint, new_run, run_in_turns

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

STEPS = 600
"""Of each phase: some seconds, so that there is time to kill."""
METHODS: dict[str, dict[str, Any]] = {
    "knowledge_distillation": {"teacher": {"kind": "trained_first", "steps": STEPS}},
    "deep_mutual_learning": {"order": "sequential"},
    "afd": {"adversarial_learning_rate": 0.001},
    "be_your_own_teacher": {},
}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_in_each_phase_they_end_bit_for_bit_as_in_one_process(tmp_path: Path) -> None:
    """All beside each other, since most of the time goes into starting workers."""
    replicas = {"count": 1, "cpus": 0.5}
    specs = {kind: spec_of(STEPS, replicas=replicas, method={"kind": kind, **METHODS[kind]}) for kind in METHODS}
    runs = {kind: create(tmp_path, spec, kind.replace("_", "-")) for kind, spec in specs.items()}
    with ExitStack() as stack:
        ends = {kind: stack.enter_context(beside(run)) for kind, run in runs.items()}
        to_kill = [
            (kind, n, after) for kind, s in specs.items() for n, after in enumerate(range(60, s.total_steps, STEPS))
        ]
        while to_kill:
            until(lambda: kill_one(runs, to_kill), limit_s=150)
        results = {kind: ended() for kind, ended in ends.items()}
    for kind, spec in specs.items():
        entry = results[kind]["replicas"]["replica-0"]
        assert entry["outcome"] == "succeeded", entry
        assert (entry["incarnations"], entry["steps"]) == (1 + spec.total_steps // STEPS, spec.total_steps)
        calm = new_run(tmp_path / "calm", spec, kind.replace("_", "-"))
        run_in_turns(calm)
        assert fingerprint(final_weights(runs[kind], 0)) == fingerprint(final_weights(calm, 0)), kind


def kill_one(runs: dict[str, RunDir], to_kill: list[tuple[str, int, int]]) -> bool:
    """Kill a worker whose time has come, and cross it off; whether there was one."""
    for entry in to_kill:
        kind, incarnation, after = entry
        if (now := comes_to(beat(runs[kind], "replica-0"), incarnation, after)) is not None:
            os.kill(now["pid"], signal.SIGKILL)
            to_kill.remove(entry)
            return True
    return False


def comes_to(now: dict[str, Any], incarnation: int, step: int) -> dict[str, Any] | None:
    """The heartbeat, once this incarnation has done so many steps; it must not be over by then."""
    if now["incarnation"] != incarnation or now["step"] < step:
        return None
    assert now["step"] < step + STEPS - 60, "too fast to be killed in time"
    return now
