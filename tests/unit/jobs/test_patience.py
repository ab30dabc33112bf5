"""Waiting for a job outlasts a service that is started again, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from jobs import conversation, wire
from jobs.async_client import AsyncClient
from jobs.client import Client, ServiceRefused, ServiceUnreachable
from jobs.patience import UNANSWERED_S, Patience
from jobs.wire import Pause
from tests.unit.jobs.fakes import Clock
from tests.unit.jobs.test_clients import ENDED, JOB, Service

AWAY = ServiceUnreachable("no service answers")
STARTING = ServiceRefused(404, wire.UNKNOWN, "the answer was 404, and no problem")
"""What Ray Serve's proxy says until it knows the routes."""
TOO_OFTEN = ServiceRefused(429, "too_many_requests", "wait 6 s", retry_after_s=6.0)
FULL = ServiceRefused(503, "storage_unavailable", "the disk is full", retry_after_s=60.0)
NO_JOB = ServiceRefused(404, "no_such_job", "there is no job")


def test_failures_are_put_up_with_for_so_long_one_after_the_other(clock: Clock) -> None:
    patience = Patience(clock)
    patience.answered()
    for _ in range(2):
        assert patience.pause_s(AWAY) == wire.POLL_S
        clock.now += UNANSWERED_S
        assert patience.pause_s(STARTING) == wire.POLL_S
        patience.answered()
    assert patience.pause_s(AWAY) == wire.POLL_S
    patience.heard()  # of another question
    clock.now += UNANSWERED_S + 0.1
    with pytest.raises(ServiceUnreachable):
        patience.pause_s(AWAY)


def test_a_time_that_the_service_names_is_waited_out_however_often(clock: Clock) -> None:
    patience = Patience(clock)
    assert patience.pause_s(TOO_OFTEN) == 6.0, "that is an answer, even if the first"
    with pytest.raises(ServiceRefused, match="full"):
        patience.pause_s(FULL)
    patience.answered()
    for error in (TOO_OFTEN, AWAY, FULL) * 3:
        assert patience.pause_s(error) == getattr(error, "retry_after_s", wire.POLL_S)
        clock.now += UNANSWERED_S


@pytest.mark.parametrize("error", [AWAY, STARTING, NO_JOB], ids=str)
def test_nothing_is_put_up_with_before_the_first_answer(error: Any) -> None:
    with pytest.raises(type(error)):
        Patience().pause_s(error)


def test_what_will_not_pass_is_told_at_once() -> None:
    patience = Patience()
    patience.answered()
    for error in (NO_JOB, ServiceRefused(401, "no_valid_token", "send one")):
        with pytest.raises(ServiceRefused):
            patience.pause_s(error)


def test_no_pause_outlasts_the_time_there_is() -> None:
    talk = conversation.wait("j", 5.0, 0.5, lambda _job: None)
    next(talk)
    answer = httpx2.Response(200, json=JOB)
    assert talk.send(answer) == Pause(0.5)
    next(talk)
    pause = talk.throw(FULL)
    assert isinstance(pause, Pause)
    assert 4.0 < pause.seconds <= 5.0


@pytest.mark.parametrize("first", [(200, JOB), (503, "starting")])
def test_both_clients_wait_for_a_service_that_has_answered_once(monkeypatch: pytest.MonkeyPatch, first: Any) -> None:
    answers = [
        first,
        (502, "<html>"),
        (404, "not found"),
        (200, JOB),
        (429, {"code": "c", "detail": "d"}),
        (200, ENDED),
    ]
    plain, waiting = Service(*answers), Service(*answers)
    slept: tuple[list[float], list[float]] = ([], [])
    monkeypatch.setattr("jobs.client.time.sleep", slept[0].append)

    async def sleep(seconds: float) -> None:
        slept[1].append(seconds)

    monkeypatch.setattr("jobs.async_client.asyncio.sleep", sleep)

    def wait() -> str:
        with Client("http://s") as client:
            client._http.close()
            client._http = httpx2.Client(base_url="http://s", transport=httpx2.MockTransport(plain))
            return client.wait("j", poll_s=0.5).state

    async def wait_too() -> str:
        async with AsyncClient("http://s") as client:
            await client._http.aclose()
            client._http = httpx2.AsyncClient(base_url="http://s", transport=httpx2.MockTransport(waiting.later))
            return (await client.wait("j", poll_s=0.5)).state

    if first[0] == 503:
        for action in (wait, lambda: asyncio.run(wait_too())):
            with pytest.raises(ServiceRefused, match="503"):
                action()
        assert len(plain.asked) == len(waiting.asked) == 1
    else:
        assert wait() == asyncio.run(wait_too()) == "FAILED"
        # This service names 6 s in every answer.
        assert slept[0] == slept[1] == [0.5, 6.0, 6.0, 0.5, 6.0]
