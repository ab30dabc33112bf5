"""Whenever a job is cancelled, twice and at once, it ends once, and what it held is free soon."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from jobs.status import TERMINAL, State
from tests.service.running import Service, spec_of, until, words

pytestmark = [pytest.mark.slow]

FREE_S = 15.0
ENDLESS = 10**6
Reached = Callable[[Service, str], Any]


def state_is(state: State) -> Reached:
    return lambda service, job: service.look(job).state is state


def beats(service: Service, job: str) -> list[dict[str, Any]]:
    return list(service.run_of(job).read_heartbeats(1).values())


def importing(service: Service, job: str) -> bool:
    """The driver has begun the attempt, and no replica has said a word."""
    return (service.run_of(job).attempt(1) / "attempt.json").exists() and not beats(service, job)


def first_step(service: Service, job: str) -> bool:
    return any(beat["step"] in (0, 1) for beat in beats(service, job)) or mid_step(service, job)


def mid_step(service: Service, job: str) -> bool:
    return any(beat["step"] > 1 for beat in beats(service, job))


def exchanging(service: Service, job: str) -> bool:
    return any(beat["teachers"] for beat in beats(service, job))


def checkpointing(service: Service, job: str) -> bool:
    return any(service.run_of(job).checkpoints("replica-0").glob("*/manifest.json"))


def finishing(service: Service, job: str) -> bool:
    return any(beat["state"] in ("finishing", "ended") for beat in beats(service, job))


def recovering(service: Service, job: str) -> bool:
    """Its driver is killed once it trains."""
    if service.look(job).state is State.RUNNING:
        os.kill(service.driver_pid(job, 1), signal.SIGKILL)
        until("the loss is seen", lambda: service.look(job).state is not State.RUNNING, 20)
    return service.look(job).state is State.RECOVERING


@pytest.mark.parametrize(
    ("reached", "steps", "ends"),
    [
        pytest.param(state_is(State.QUEUED), ENDLESS, {State.CANCELLED}, id="queued"),
        pytest.param(state_is(State.ADMITTED), ENDLESS, {State.CANCELLED}, id="admitted"),
        pytest.param(state_is(State.STARTING), ENDLESS, {State.CANCELLED}, id="starting"),
        pytest.param(importing, ENDLESS, {State.CANCELLED}, id="importing"),
        pytest.param(first_step, ENDLESS, {State.CANCELLED}, id="first step"),
        pytest.param(exchanging, ENDLESS, {State.CANCELLED}, id="exchanging"),
        pytest.param(checkpointing, ENDLESS, {State.CANCELLED}, id="checkpointing"),
        pytest.param(recovering, ENDLESS, {State.CANCELLED}, id="recovering"),
        pytest.param(finishing, 120, {State.CANCELLED, State.SUCCEEDED}, id="finishing"),
    ],
)
def test_one_outcome_and_nothing_left(service: Service, reached: Reached, steps: int, ends: set[State]) -> None:
    training = {"steps": steps, "batch_size": 16, "checkpoint_interval_steps": 1, "evaluate_interval_steps": steps}
    if reached is exchanging:
        training["checkpoint_interval_steps"] = ENDLESS  # so that the last one is the only one
    # One replica where one will do: most of the time goes into starting it.
    alone = {} if reached is exchanging else {"method": {"kind": "solo"}, "replicas": {"count": 1, "cpus": 0.5}}
    job = service.client.submit(spec_of("cancelled", steps, training=training, **alone)).id
    until("the phase is reached", lambda: reached(service, job) or service.client.show(job).state in TERMINAL, 120)
    seen, asked_at = {beat["replica"]: beat["step"] for beat in beats(service, job)}, time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        answers = [answer.result() for answer in [pool.submit(service.client.cancel, job) for _ in range(2)]]
    assert {answer.state for answer in answers} <= {State.CANCELLING, *TERMINAL}
    ended = service.client.wait(job, timeout_s=60, poll_s=0.1)
    at = time.monotonic()
    assert ended.state in ends, (ended.state, ended.reason, service.driver_log(job))
    states = [change["state"] for change in ended.value["status"]["transitions"]]
    assert len(TERMINAL & set(states)) == 1
    assert len(states) == len(set(states)), f"no state twice: {states}"
    assert service.client.cancel(job).state is ended.state, "too late changes nothing"
    until("its processes are gone", lambda: not processes_of(service, job), FREE_S)
    until("its room is free", lambda: free(service), FREE_S - (time.monotonic() - at))
    again = service.client.show(job)
    assert again.value["status"]["transitions"] == ended.value["status"]["transitions"]
    if reached is exchanging:
        assert {answer.state for answer in answers} == {State.CANCELLING}
        assert at - asked_at < FREE_S
        assert ended.reason is not None
        assert ended.reason.code == "cancel_requested"
        assert ended.value["result"]["outcome"] == "cancelled"
        assert len(seen) == 2
        for replica, step in seen.items():
            done = ended.value["result"]["replicas"][replica]["steps"]
            assert done >= step
            kept = [path.parent.name for path in service.run_of(job).checkpoints(replica).glob("*/manifest.json")]
            assert kept == [f"0001-{done:012d}"], "a last checkpoint"


def processes_of(service: Service, job: str) -> list[int]:
    return [process.pid for process in service.own_processes() if job in " ".join(words(process.pid))]


def free(service: Service) -> bool:
    """By the service's own table, which admits the next."""
    return service.client.queue()["reserved"] == {"cpus": 0.0, "gpus": 0.0}
