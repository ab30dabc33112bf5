"""What the driver decides, without a cluster."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.decisions import (
    ABORT_AFTER_S,
    KILL_AFTER_S,
    LEAVE_AFTER_S,
    LifeSign,
    outcome_from_beat,
    refusal,
    rung,
)
from codistill.capacity import Node
from codistill.deadlines import overdue
from codistill.restarts import Failure, GiveUp, Retry, after_failure
from codistill.spec import JobSpec, Limits, Replicas
from codistill.spec_errors import parse_spec

DIED = Failure(step=40, error="its worker process died", died=True)


def raised(step: int, error: str = "ValueError: loss is nan") -> Failure:
    return Failure(step, error, died=False)


class TestAfterFailure:
    def test_first_restart_is_immediate_and_later_ones_wait_twice_as_long_each(self) -> None:
        delays = [after_failure([DIED] * count, max_failures=100) for count in range(1, 10)]
        assert delays == [Retry(float(delay)) for delay in (0, 1, 2, 4, 8, 16, 32, 60, 60)]

    def test_one_failure_more_than_allowed_is_the_end(self) -> None:
        assert isinstance(after_failure([DIED] * 3, max_failures=3), Retry)
        assert after_failure([DIED] * 4, max_failures=3) == GiveUp("its worker process died")
        assert after_failure([raised(1)], max_failures=0) == GiveUp("ValueError: loss is nan")

    def test_same_error_at_the_same_step_is_not_tried_a_third_time(self) -> None:
        assert after_failure([raised(7), raised(7)], 100) == GiveUp("ValueError: loss is nan (twice at step 7)")
        assert isinstance(after_failure([raised(7), DIED, raised(7)], 100), GiveUp)

    @pytest.mark.parametrize("second", [raised(8), raised(7, "OSError: disk full")], ids=["step", "error"])
    def test_another_step_or_error_is_another_failure(self, second: Failure) -> None:
        assert isinstance(after_failure([raised(7), second], 100), Retry)

    def test_process_that_vanishes_twice_at_one_step_may_have_been_killed_twice(self) -> None:
        assert isinstance(after_failure([DIED, DIED], 100), Retry)


class TestRefusal:
    def test_what_fits_is_not_refused(self) -> None:
        assert refusal(JobSpec(), [Node(cpus=2, gpus=0)]) is None

    def test_what_is_short_is_named(self) -> None:
        reason = refusal(JobSpec(), [Node(cpus=1, gpus=0)])
        assert reason is not None
        assert reason.code == "no_capacity"
        assert "needs 2 CPUs" in reason.message
        assert refusal(JobSpec(), [Node(2, 0, 20.0)], 10) is None
        assert refusal(JobSpec(), [Node(2, 0, 20.0)], 11) is not None

    def test_memory_is_refused_before_anything_is_reserved(self) -> None:
        spec = parse_spec({"exchange": {"transport": {"kind": "memory"}}})
        reason = refusal(spec, [])
        assert reason is not None
        assert reason.code == "spec"


class TestOverdue:
    spec = JobSpec(replicas=Replicas(count=2), limits=Limits(max_runtime_s=1000, start_deadline_s=100))

    @pytest.mark.parametrize(
        ("elapsed_s", "unstarted", "code"),
        [
            (99, {"replica-0"}, None),
            (101, {"replica-0"}, "start_deadline"),
            (101, set[str](), None),
            (1001, set[str](), "max_runtime"),
            (1001, {"replica-0"}, "max_runtime"),
        ],
    )
    def test_limits(self, elapsed_s: float, unstarted: set[str], code: str | None) -> None:
        reason = overdue(self.spec, elapsed_s, unstarted)
        assert (None if reason is None else reason.code) == code

    def test_names_who_has_not_started(self) -> None:
        reason = overdue(self.spec, 101, {"replica-1"})
        assert reason is not None
        assert "replica-1" in reason.message
        assert "replica-0" not in reason.message


class TestRung:
    @pytest.mark.parametrize(
        ("since_stop_s", "expected"),
        [
            (0, "wait"),
            (ABORT_AFTER_S - 0.1, "wait"),
            (ABORT_AFTER_S, "abort"),
            (KILL_AFTER_S, "kill"),
            (LEAVE_AFTER_S, "leave"),
        ],
    )
    def test_presses_harder_with_time(self, since_stop_s: float, expected: str) -> None:
        assert rung(since_stop_s, hurried=False) == expected

    def test_second_signal_skips_the_wait_and_no_rung(self) -> None:
        assert rung(0, hurried=True) == "abort"
        assert rung(KILL_AFTER_S - ABORT_AFTER_S, hurried=True) == "kill"

    def test_ends_before_ray_kills_the_driver(self) -> None:
        assert LEAVE_AFTER_S < 30


class TestLifeSign:
    @staticmethod
    def beat(time: float, incarnation: int = 0) -> dict[str, Any]:
        return {"time": time, "incarnation": incarnation}

    def test_hangs_when_the_beat_has_not_changed_for_long(self) -> None:
        life = LifeSign()
        life.observe(self.beat(5.0), now=100.0)
        life.observe(self.beat(5.0), now=150.0)
        assert not life.hangs(160.0, limit_s=60)
        assert life.hangs(160.1, limit_s=60)
        life.observe(self.beat(5.5), now=170.0)
        assert not life.hangs(229.0, limit_s=60)

    def test_who_never_showed_life_is_not_hanging(self) -> None:
        life = LifeSign()
        life.observe(None, now=0.0)
        assert not life.hangs(1e9, limit_s=60)

    def test_old_beat_of_an_ended_incarnation_does_not_condemn_the_next(self) -> None:
        life = LifeSign(ended_incarnation=0)
        life.observe(self.beat(5.0, incarnation=0), now=0.0)
        assert not life.hangs(1e9, limit_s=60)
        life.observe(self.beat(6.0, incarnation=1), now=0.0)
        assert life.hangs(61.0, limit_s=60)


def test_outcome_of_a_replica_that_returned_nothing_comes_from_its_last_beat() -> None:
    beat = {
        "step": 12,
        "incarnation": 2,
        "bytes_sent": 3,
        "bytes_received": 4,
        "metrics": {"eval/accuracy": 0.9, "eval/log_loss": None, "train/loss": 0.1},
    }
    outcome = outcome_from_beat("failed", beat, error="why", seconds=1.5)
    assert (outcome.steps, outcome.incarnations, outcome.error, outcome.bytes_received) == (12, 3, "why", 4)
    assert outcome.metrics == {"eval/accuracy": 0.9}
    assert outcome_from_beat("cancelled", None, error=None, seconds=0.0).steps == 0
