"""Whatever happens in whatever order: no illegal change, nothing leaves a final state, one living driver per job."""

from __future__ import annotations

import itertools
import logging
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from codistill.capacity import Demand, Node, shortage
from jobs.callers import LOCAL
from jobs.decide import Driver
from jobs.job import Transition
from jobs.manager import Manager
from jobs.routes.backend import Backend
from jobs.routes.submission import cancel_job
from jobs.status import NEXT, RESERVING, TERMINAL, State
from jobs.store import Store
from tests.stores import new_store
from tests.unit.jobs.fakes import Clock, FakeRunner, spec


class ManagerMachine(RuleBasedStateMachine):
    """Users, drivers, clusters and managers do what they like; the invariants hold."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.clock = Clock()
        (self.root / "runs").mkdir()
        self.store = Store.open(new_store(self.root), self.clock)
        self.runner = FakeRunner(self.root / "runs")
        self.nodes = [Node(2.0, 0.0), Node(1.0, 0.0)]
        self.owner = 0
        self.managers: list[tuple[Manager, int]] = []
        self.ended: dict[str, list[Transition]] = {}
        self.errors: list[str] = []
        self.handler = _Errors(self.errors)
        logging.getLogger("codistill").addHandler(self.handler)
        self.replace_manager()

    def teardown(self) -> None:
        logging.getLogger("codistill").removeHandler(self.handler)
        self.store.close()
        shutil.rmtree(self.root)

    # ---- users

    @rule(target=jobs, count=st.integers(1, 3), attempts=st.integers(1, 3))
    def submit(self, count: int, attempts: int) -> str:
        limits = {"max_attempts": attempts, "start_deadline_s": 20, "max_runtime_s": 100}
        return self.store.create(spec(replicas={"count": count}, method={"kind": "solo"}, limits=limits)).id

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        cancel_job(Backend(self.store, self.root / "runs", lambda: self.nodes), LOCAL, job_id)

    # ---- managers

    @rule()
    def tick(self) -> None:
        manager, lease = self.managers[-1]
        manager.tick(lease)

    @rule(times=st.integers(2, 6))
    def tick_often(self, times: int) -> None:
        for _ in range(times):
            self.clock.now += 0.3
            self.tick()

    @rule()
    def replace_manager(self) -> None:
        if self.managers:
            self.clock.now += 6.0
        self.owner += 1
        lease = self.store.lease.acquire(f"manager-{self.owner}", 5.0)
        if lease is None:
            return
        made = Manager(self.store, self.runner, self.root / "runs", lambda: self.nodes, self.clock)
        self.managers.append((made, lease))

    @precondition(lambda self: len(self.managers) > 1)
    @rule()
    def zombie_tick(self) -> None:
        manager, lease = self.managers[-2]
        manager.tick(lease)

    # ---- the cluster and its drivers

    @rule(job_id=jobs)
    def driver_begins(self, job_id: str) -> None:
        for fence in self._alive(job_id):
            self.runner.begin(job_id, fence)

    @rule(job_id=jobs)
    def replicas_step(self, job_id: str) -> None:
        for fence in self._alive(job_id):
            self.runner.step(job_id, fence, 3)

    @rule(job_id=jobs, outcome=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def driver_finishes(self, job_id: str, outcome: str) -> None:
        for fence in self._alive(job_id):
            self.runner.finish(job_id, fence, outcome)

    @rule(job_id=jobs)
    def driver_dies(self, job_id: str) -> None:
        for fence in self._alive(job_id):
            self.runner.die(job_id, fence)

    @rule()
    def cluster_is_lost(self) -> None:
        self.runner.drivers.clear()

    @rule()
    def cluster_stops_or_starts_to_answer(self) -> None:
        self.runner.down = not self.runner.down

    @rule(seconds=st.sampled_from([0.5, 2.0, 25.0, 120.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    def _alive(self, job_id: str) -> list[int]:
        return [f for (owner, f), d in self.runner.drivers.items() if owner == job_id and d is Driver.ALIVE]

    # ---- what must always hold

    @invariant()
    def every_change_was_legal(self) -> None:
        for job in self.store.in_states(list(State)):
            states = [t.state for t in self.store.transitions(job.id)]
            assert states[0] is State.QUEUED
            assert states[-1] is job.state
            for old, new in itertools.pairwise(states):
                assert new in NEXT[old], (old, new)

    @invariant()
    def final_is_final(self) -> None:
        for job in self.store.in_states(TERMINAL):
            log = self.store.transitions(job.id)
            assert self.ended.setdefault(job.id, log) == log

    @invariant()
    def attempts_stay_within_their_limit_and_fences_count_them(self) -> None:
        for job in self.store.in_states(list(State)):
            assert job.attempts == job.fence <= job.spec.limits.max_attempts
            submitted = [fence for owner, fence in self.runner.submitted if owner == job.id]
            assert all(fence <= job.fence for fence in submitted)

    @invariant()
    def at_most_one_driver_of_a_job_lives(self) -> None:
        for job in self.store.in_states(list(State)):
            assert len(self._alive(job.id)) <= 1

    @invariant()
    def reservations_fit(self) -> None:
        held = [job.demand for job in self.store.in_states(RESERVING)]
        together = Demand(sum(d.ranks for d in held), 1.0, 0.0)
        assert not held or shortage(together, self.nodes) is None

    @invariant()
    def nothing_went_wrong_unseen(self) -> None:
        assert not self.errors


class _Errors(logging.Handler):
    def __init__(self, found: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.found = found

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


class TestManagerMachine(ManagerMachine.TestCase):
    settings = settings(
        max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
