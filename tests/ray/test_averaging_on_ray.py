"""Replicas that become their mean, on Ray: one is killed, the other waits, and both end as if nothing had been."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from codistill.run_dir import RunDir
from tests.ray.running import beat, beside, create, spec_of, until
from tests.support import final_weights, fingerprint, new_run, run_in_turns

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

STEPS, KILLED_FROM = 200, 65
"""Exchanges after every 20 steps, checkpoints after every 50."""


@pytest.mark.slow
def test_one_of_two_is_killed_and_they_end_bit_for_bit_as_in_one_process(tmp_path: Path) -> None:
    """DiLoCo, which besides has an outer optimizer to come back to."""
    spec = spec_of(
        STEPS,
        replicas={"cpus": 1.0},
        method={"kind": "diloco"},
        exchange={"mode": "lockstep", "interval_steps": 20},
    )
    run = create(tmp_path, spec)
    with beside(run) as ended:
        until(lambda: steps_of(run) >= KILLED_FROM)
        os.kill(beat(run, "replica-1")["pid"], signal.SIGKILL)
        assert steps_of(run) < STEPS - 20, "too fast to be killed in time"
        result = ended()["replicas"]
    assert {name: (entry["outcome"], entry["incarnations"]) for name, entry in result.items()} == {
        "replica-0": ("succeeded", 1),
        "replica-1": ("succeeded", 2),
    }
    calm = new_run(tmp_path / "calm", spec)
    run_in_turns(calm)
    expected = fingerprint(final_weights(calm, 0))
    assert [fingerprint(final_weights(run, index)) for index in range(2)] == [expected] * 2


def steps_of(run: RunDir) -> int:
    """How far replica 1 is, which in lockstep it says before each step."""
    try:
        return int.from_bytes((run.exchange("replica-1") / "step").read_bytes(), "little")
    except FileNotFoundError:
        return 0
