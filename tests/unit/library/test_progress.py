"""Speed and time left, by hand, out of heartbeats as replicas write them."""

from __future__ import annotations

from typing import Any

import pytest

from codistill.progress import progress_line, steps_per_s, time_left_s
from codistill.telemetry import Beat


def beat(**change: Any) -> dict[str, Any]:
    """A replica that has made steps 1 to 121 of 600, the first at second 1000, then 40 a second."""
    values = vars(Beat("replica-0", fence=1, incarnation=0, steps=600, step=121, state="training"))
    values |= {"first_step_at": 1000.0, "last_step_at": 1003.0, "time": 1003.2, "first_step": 0, "metrics": {}}
    return values | change


def test_speed_and_time_left() -> None:
    assert steps_per_s(beat()) == pytest.approx(40.0)
    assert time_left_s(beat()) == pytest.approx(479 / 40)
    assert (
        progress_line(beat(loss=0.41234), now=1003.5) == "replica-0  step 121/600  40.0 steps/s  12 s left  loss 0.412"
    )


def test_what_an_earlier_incarnation_made_does_not_count() -> None:
    resumed = beat(incarnation=2, first_step=100)
    assert steps_per_s(resumed) == pytest.approx(20 / 3)
    assert time_left_s(resumed) == pytest.approx(479 / (20 / 3))
    assert "incarnation 2  6.67 steps/s  1 min 12 s left" in progress_line(resumed, now=1003.5)


def test_without_first_step_only_a_replica_never_restarted_has_a_speed() -> None:
    old = beat()
    del old["first_step"]
    assert steps_per_s(old) == pytest.approx(40.0)
    assert steps_per_s(old | {"incarnation": 1}) is None
    assert steps_per_s(old | {"fence": 2}) is None
    assert "left" not in progress_line(old | {"incarnation": 1}, now=1003.5)


@pytest.mark.parametrize(
    "change",
    [
        {"step": 0, "first_step_at": None, "last_step_at": None},
        {"step": 1, "last_step_at": 1000.0},
        {"step": 7, "first_step": 30},  # of another phase
        {"first_step_at": 1003.0},
    ],
)
def test_no_speed_before_two_steps_and_none_from_numbers_that_disagree(change: dict[str, Any]) -> None:
    assert steps_per_s(beat(**change)) is None
    assert time_left_s(beat(**change)) is None


@pytest.mark.parametrize("state", ["starting", "finishing", "ended", "failed"])
def test_only_training_takes_time_that_can_be_told(state: str) -> None:
    assert time_left_s(beat(state=state)) is None


def test_a_silent_replica_has_no_time_left() -> None:
    line = progress_line(beat(), now=1013.2)
    assert "left" not in line
    assert line.endswith("silent for 10 s")
    assert progress_line(beat(state="failed"), now=1013.2).endswith("failed")


def test_teachers_stand_after_the_time() -> None:
    teachers = [{"teacher": "replica-1", "version": 100, "lag_steps": None, "offset_steps": 21}]
    line = progress_line(beat(teachers=teachers, metrics={"eval/accuracy": 0.9534}), now=1003.5)
    assert line.endswith("12 s left  accuracy 0.953  hears replica-1 v100 (lag ?, offset 21)")


@pytest.mark.parametrize(("speed", "says"), [(1234.4, "1234"), (41.23, "41.2"), (2.0, "2.00"), (0.03125, "0.0312")])
def test_speeds_have_three_digits_that_count(speed: float, says: str) -> None:
    line = progress_line(beat(step=2, last_step_at=1000.0 + 1 / speed, time=1000.0), now=1000.0)
    assert f"  {says} steps/s  " in line
