"""Following a Ray Job whose dashboard does not always answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import pytest

from jobs.cli import ray_job
from jobs.cli.exits import CommandError, Exit


class Status(StrEnum):
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"

    def is_terminal(self) -> bool:
        return self is Status.SUCCEEDED


class Dashboard:
    """Of a cluster on which one job writes a line a second for `takes_s`; time passes while it is not asked."""

    def __init__(self, takes_s: float) -> None:
        self.now, self.takes_s = 0.0, takes_s
        self.is_away: Callable[[float, str], bool] = lambda _now, _what: False
        self.asked: list[str] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def get_address(self) -> str:
        return "http://head:8265"

    def get_job_status(self, _submission: str) -> Status:
        self._ask("status")
        return Status.SUCCEEDED if self.now >= self.takes_s else Status.RUNNING

    def get_job_logs(self, _submission: str) -> str:
        self._ask("log")
        return "".join(f"line {i}\n" for i in range(int(min(self.now, self.takes_s))))

    def _ask(self, what: str) -> None:
        if self.is_away(self.now, what):
            raise (ConnectionError if int(self.now) % 2 else RuntimeError)("no\nbad gateway")
        self.asked.append(what)


def follow(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(time, "monotonic", lambda: 1e6 + dashboard.now)
    monkeypatch.setattr(time, "sleep", dashboard.sleep)
    client: Any = dashboard
    return ray_job._follow(client, "job-1")


def test_the_log_is_whole_and_asked_for_seldom(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard = Dashboard(takes_s=22.0)
    assert follow(dashboard, monkeypatch) == "SUCCEEDED"
    assert capsys.readouterr().err.splitlines() == [f"line {i}" for i in range(22)]
    assert dashboard.asked.count("status") == 45
    assert dashboard.asked.count("log") == 6, "one at once, one every 5 s, and one at the end"


def test_a_dashboard_that_is_away_for_less_than_a_minute_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard = Dashboard(takes_s=200.0)
    dashboard.is_away = lambda now, what: now % 70 >= 11 or (what == "log" and now < 100)
    assert follow(dashboard, monkeypatch) == "SUCCEEDED"
    assert capsys.readouterr().err.splitlines() == [f"line {i}" for i in range(200)]


def test_one_that_stays_away_is_3_and_the_job_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    dashboard = Dashboard(takes_s=200.0)
    dashboard.is_away = lambda now, _what: now > 10
    with pytest.raises(CommandError, match=r"8265 has not answered for 60 s: bad gateway; the job goes on") as told:
        follow(dashboard, monkeypatch)
    assert told.value.code == Exit.UNAVAILABLE
    assert "ray job status job-1 --address http://head:8265" in str(told.value)
    assert 70 < dashboard.now < 72


def test_how_a_job_ended_is_known_without_its_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard = Dashboard(takes_s=30.0)
    dashboard.is_away = lambda now, what: now > 20 and what == "log"
    assert follow(dashboard, monkeypatch) == "SUCCEEDED"
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("the rest of its log does not come: bad gateway; try: ray job logs job-1 --follow")
    assert said[:-1] == [f"line {i}" for i in range(20)]
