"""The manager with real stores and run directories and a cluster of plain values."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codistill.capacity import Node
from codistill.run_dir import RunDir
from jobs.decide import Driver
from jobs.job import Job, Reason
from jobs.manager import Manager
from jobs.manager_loop import ManagerLoop
from jobs.status import TERMINAL, State
from jobs.store import Store
from jobs.store_terms import Submission
from tests.stores import new_store
from tests.unit.jobs.fakes import Clock, FakeRunner, spec


class World:
    """A manager and everything around it."""

    def __init__(self, root: Path) -> None:
        self.clock = Clock()
        self.storage = root / "runs"
        self.storage.mkdir()
        self.url = new_store(root)
        self.store = Store.open(self.url, self.clock)
        self.runner = FakeRunner(self.storage)
        self.nodes = [Node(2.0, 0.0)]
        self.manager = self.new_manager()
        lease = self.store.lease.acquire("test", 1e9)
        assert lease is not None
        self.lease = lease

    def new_manager(self) -> Manager:
        return Manager(self.store, self.runner, self.storage, lambda: self.nodes, self.clock)

    def tick(self, seconds: float = 0.0) -> None:
        self.clock.now += seconds
        self.manager.tick(self.lease)

    def submit(self, **change: Any) -> str:
        return self.store.create(spec(**change)).id

    def job(self, job_id: str) -> Job:
        found = self.store.get(job_id)
        assert found is not None
        return found

    def states(self, job_id: str) -> list[State]:
        return [t.state for t in self.store.transitions(job_id)]

    def run_to_running(self, job_id: str) -> None:
        self.tick()
        self.tick()
        fence = self.job(job_id).fence
        self.runner.begin(job_id, fence)
        self.runner.step(job_id, fence, 2)
        self.tick()
        assert self.job(job_id).state is State.RUNNING


@pytest.fixture
def world(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.store.close()
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR], caplog.text


def test_from_queue_to_success(world: World) -> None:
    job_id = world.submit()
    world.run_to_running(job_id)
    assert RunDir(world.storage, job_id).read_spec() == spec()
    assert world.job(job_id).submission_id == f"{job_id}-1"
    world.runner.finish(job_id, 1, "succeeded")
    world.tick()
    assert world.states(job_id) == [
        State.QUEUED, State.ADMITTED, State.STARTING, State.RUNNING, State.SUCCEEDED,
    ]  # fmt: skip
    assert world.runner.submitted == [(job_id, 1)]


def test_a_lost_driver_is_followed_by_the_next_fence_after_a_pause(world: World) -> None:
    job_id = world.submit()
    world.run_to_running(job_id)
    world.runner.die(job_id, 1)
    world.tick()
    assert world.job(job_id).state is State.RECOVERING
    world.tick(0.9)
    assert world.runner.submitted == [(job_id, 1)]
    world.tick(0.2)
    assert world.runner.submitted == [(job_id, 1), (job_id, 2)]
    world.runner.begin(job_id, 2)
    world.tick()
    assert world.job(job_id).state is State.STARTING  # the heartbeats of attempt 1 are not read
    world.runner.step(job_id, 2, 2)
    world.tick()
    world.runner.finish(job_id, 2, "succeeded")
    world.tick()
    assert (world.job(job_id).state, world.job(job_id).attempts) == (State.SUCCEEDED, 2)


def test_a_result_of_an_older_fence_is_never_read(world: World) -> None:
    job_id = world.submit()
    world.run_to_running(job_id)
    world.runner.die(job_id, 1)
    world.tick()
    world.tick(2)
    world.runner.finish(job_id, 1, "succeeded")  # a zombie writes after its time
    world.tick()
    assert world.job(job_id).state is State.STARTING


def test_a_driver_of_an_older_fence_is_stopped_before_the_next_one_starts(world: World) -> None:
    job_id = world.submit()
    world.run_to_running(job_id)
    world.runner.die(job_id, 1)
    world.tick()
    world.tick(2)
    world.runner.drivers[job_id, 1] = Driver.ALIVE  # it was only thought dead
    world.runner.die(job_id, 2)
    world.tick()
    world.tick(3)
    assert (job_id, 1) in world.runner.stopped
    assert (job_id, 3) not in world.runner.submitted
    world.tick()
    assert (job_id, 3) in world.runner.submitted


def test_attempts_run_out_and_the_first_cause_is_told(world: World) -> None:
    job_id = world.submit(limits={"max_attempts": 2})
    for fence in (1, 2):
        world.tick()
        world.tick(5)
        world.runner.die(job_id, fence)
        world.tick()
    job = world.job(job_id)
    assert job.state is State.FAILED
    assert job.reason is not None
    assert "the driver of attempt 1 ended" in job.reason.message
    assert len(world.runner.submitted) == 2


def test_cancel_asks_first_and_stops_after_30_s(world: World) -> None:
    job_id = world.submit()
    world.run_to_running(job_id)
    world.store.move(world.job(job_id), State.CANCELLING, reason=Reason("cancel_requested", "asked"))
    world.tick()
    assert RunDir(world.storage, job_id).stop_requested(1)
    world.tick(29)
    assert world.runner.stopped == []
    world.tick(2)
    assert world.runner.stopped == [(job_id, 1)]
    world.tick()
    assert world.job(job_id).state is State.CANCELLED


def test_a_manager_that_dies_between_commit_and_start_is_made_good(world: World) -> None:
    job_id = world.submit()
    world.tick()
    world.runner.down = True
    world.tick()  # commits the attempt, then cannot start it
    assert (world.job(job_id).state, world.runner.submitted) == (State.STARTING, [])
    world.runner.down = False
    world.manager = world.new_manager()
    world.tick()
    world.tick()
    assert world.runner.submitted == [(job_id, 1)]


def test_storage_that_is_gone_fails_the_job_with_a_sentence(world: World) -> None:
    job_id = world.submit()
    world.storage.rmdir()
    world.tick()
    world.tick()
    job = world.job(job_id)
    assert (job.state, job.attempts) == (State.FAILED, 0)
    assert job.reason is not None
    assert job.reason.code == "storage"
    assert "does not exist; create it" in job.reason.message


def test_a_driver_of_a_finished_job_is_stopped(world: World) -> None:
    job_id = world.submit()
    world.run_to_running(job_id)
    world.runner.finish(job_id, 1, "succeeded")
    world.runner.drivers[job_id, 1] = Driver.ALIVE  # it hangs after its result
    world.tick()
    assert world.job(job_id).state is State.SUCCEEDED
    world.tick(10)
    assert world.runner.stopped == []
    world.tick(10)
    assert world.runner.stopped == [(job_id, 1)]


def test_room_is_given_back_at_the_end(world: World) -> None:
    first, second = world.submit(), world.submit()
    world.run_to_running(first)
    waiting = world.job(second)
    assert waiting.state is State.QUEUED
    assert waiting.reason is not None
    assert "waits for room" in waiting.reason.message
    world.tick(5.0)
    assert world.job(second).updated_at == waiting.updated_at, "nothing is written that stands there already"
    world.runner.finish(first, 1, "failed")
    world.tick()
    assert world.job(first).state is State.FAILED
    assert world.job(second).state is State.ADMITTED
    assert world.job(second).reason is None


def test_one_bad_job_does_not_hold_up_the_others(world: World, caplog: pytest.LogCaptureFixture) -> None:
    first, second = world.submit(replicas={"count": 1}, method={"kind": "solo"}), world.submit()
    world.nodes = [Node(4.0, 0.0)]
    world.tick()
    (world.storage / first).write_text("a file where a directory belongs")
    world.tick()
    assert world.job(second).state is State.STARTING
    assert world.job(first).state in {State.FAILED, State.ADMITTED}
    caplog.clear()


def old_jobs(world: World) -> dict[str, str]:
    """Jobs that ended at 1,000 s, a second apart, each with a directory; and others that are to stay."""
    found: dict[str, str] = {}
    for name, labels, ends in (
        ("first", {}, True), ("kept", {"keep": "yes"}, True), ("second", {}, True), ("third", {}, True),
        ("alive", {}, False),
    ):  # fmt: skip
        found[name] = world.submit(name=name, labels=labels)
        (world.storage / found[name] / "export").mkdir(parents=True)
        if ends:
            world.clock.now += 1.0
            world.store.move(world.job(found[name]), State.CANCELLED)
    return found


def test_what_ended_long_ago_goes_one_a_round_and_oldest_first(world: World) -> None:
    world.nodes = []
    jobs = old_jobs(world)
    world.manager = Manager(world.store, world.runner, world.storage, lambda: world.nodes, world.clock, keep_days=2.0)
    gone: list[str] = []

    def tick(seconds: float = 0.0) -> list[str]:
        world.tick(seconds)
        gone.extend(name for name, one in jobs.items() if world.store.get(one) is None and name not in gone)
        return gone

    # first ended 3 s ago; it is due half a second after this look.
    assert tick(2 * 86_400.0 - 3.5) == []
    assert tick(0.6) == [], "a manager looks every ten minutes"
    assert tick(599.5) == ["first"]
    assert tick() == ["first", "second"]
    assert tick() == ["first", "second", "third"]
    assert tick(1e6) == ["first", "second", "third"]
    assert sorted(path.name for path in world.storage.iterdir()) == sorted([jobs["kept"], jobs["alive"]])
    rows = world.store.audit(jobs["first"])
    assert [(row.action, row.owner) for row in rows] == [("submit", "local"), ("retention", "service")]


def test_by_default_nothing_goes(world: World) -> None:
    world.nodes = []
    jobs = old_jobs(world)
    world.tick(1e9)
    assert all(world.store.get(one) for one in jobs.values())


def test_what_another_job_needs_stays(world: World) -> None:
    world.nodes = []
    jobs = old_jobs(world)
    world.store.submit(Submission(spec(), parent=jobs["first"]))
    teacher = {"kind": "knowledge_distillation", "teacher": {"kind": "job", "job": jobs["second"]}}
    student = world.submit(method=teacher, replicas={"count": 1})
    world.manager = Manager(world.store, world.runner, world.storage, lambda: world.nodes, world.clock, keep_days=2.0)
    for _ in range(3):
        world.tick(1e6)
    assert world.store.get(jobs["first"]) is not None, "a job goes on from it"
    assert world.store.get(jobs["second"]) is not None, "a job that waits learns from it"
    assert world.store.get(jobs["third"]) is None
    assert (world.storage / jobs["second"]).is_dir()
    world.store.move(world.job(student), State.CANCELLED)
    for _ in range(3):
        world.tick(601.0)
    assert world.store.get(jobs["second"]) is None


def test_the_loop_brings_a_job_to_its_end_and_passes_the_lease_on(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.store.lease.release("test")
    world.clock = world.manager._clock = time.time
    store = Store.open(world.url)
    loop = ManagerLoop(store, Manager(store, world.runner, world.storage, lambda: world.nodes))
    job_id = world.submit()
    loop.start()
    try:
        give_up = time.monotonic() + 20
        while not world.runner.submitted and time.monotonic() < give_up:
            time.sleep(0.05)
        world.runner.finish(job_id, 1, "succeeded")
        while world.job(job_id).state not in TERMINAL and time.monotonic() < give_up:
            time.sleep(0.05)
        loop.check()
    finally:
        loop.close()
    assert world.job(job_id).state is State.SUCCEEDED
    assert store.lease.acquire("next", 5.0) is not None
    store.close()
    world.store.close()
