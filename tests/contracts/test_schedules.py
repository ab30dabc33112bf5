"""What a reader may count on, whatever happens to whom and when: replicas of unequal speed publish, die, come back with
fewer steps, end, and are started anew in a second attempt while the first still speaks."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from codistill.exchange import mailbox as module
from codistill.exchange.clock import PublishRule
from codistill.exchange.mailbox import Mailbox
from codistill.exchange.shelf import Held
from codistill.exchange.snapshot import SnapshotId
from codistill.exchange.terms import Counters, MailboxSettings
from codistill.exchange.transport import FilesTransport, Hub, MemoryTransport, Transport
from codistill.exchange.weights import OfWeights
from codistill.records import LEDGER, Recorder
from codistill.run_dir import RunDir
from tests.contracts.publishing import KEEP

Connect = Callable[[int], Transport]
NO_LEDGER = Recorder(None, LEDGER, fence=1, incarnation=0)
REPLICAS = 3


@dataclass(frozen=True)
class Schedule:
    """Who does what, in order; and when snapshots are due."""

    rule: PublishRule
    replicas: int
    events: list[tuple[int, str]]


# Of seven steps replica 0 makes four, replica 1 one, replica 2 two: unequal speeds.
EVENTS = [(replica, "step") for replica, speed in enumerate((4, 1, 2)) for _ in range(12 * speed)]
EVENTS += [(replica, kind) for replica in range(REPLICAS) for kind in ("die", "restart", "restart", "end", "look")]
EVENTS += [(0, "attempt")] * 2 + [(replica, "step before") for replica in range(REPLICAS)] * 3
SCHEDULES = st.builds(
    Schedule,
    st.builds(PublishRule, st.integers(0, 3), st.integers(1, 3)),
    st.integers(2, REPLICAS),
    st.lists(st.sampled_from(EVENTS), max_size=80),
)

STILL_SPEAKING = Schedule(PublishRule(0, 1), 2, [(0, "attempt"), *[(1, "step before")] * 3, (0, "look")])
"""What an old attempt announces does not push out what the new one has."""


def drawn(seed: int) -> Schedule:
    """One of two hundred events."""
    source = random.Random(seed)
    rule = PublishRule(source.randint(0, 3), source.randint(1, 3))
    return Schedule(rule, REPLICAS, source.choices(EVENTS, k=200))


def value_of(who: SnapshotId) -> float:
    """All entries of a snapshot; exact in float32, another for each, and near enough to each other for the gate."""
    return float(10_000 + 8000 * who.fence + 1000 * who.replica + 100 * min(who.incarnation, 60) + who.version)


class Net(nn.Module):
    """Parameters of several shapes and two kinds of buffers, all of one value."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(40, 50))
        self.scale = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0))

    def become(self, who: SnapshotId) -> Net:
        """In place, as training does."""
        with torch.no_grad():
            for tensor in (*self.parameters(), *self.buffers()):
                tensor.fill_(value_of(who))
        return self


@dataclass
class Actor:
    """One incarnation of a replica."""

    me: SnapshotId
    box: Mailbox[nn.Module]
    net: Net
    step: int = 0


@dataclass
class Play:
    """The replicas of a schedule, and everything that they were seen to do."""

    rule: PublishRule
    replicas: int
    connect: Connect
    threaded: bool = False
    now: dict[int, Actor] = field(default_factory=dict[int, Actor])
    before: dict[int, Actor] = field(default_factory=dict[int, Actor])
    """Those of the attempt before, which still run."""
    ended: set[int] = field(default_factory=set[int])
    shown: dict[int, set[SnapshotId]] = field(default_factory=dict[int, set[SnapshotId]])
    said: dict[int, tuple[SnapshotId, int]] = field(default_factory=dict[int, tuple[SnapshotId, int]])
    """By whom, of which incarnation, a step was last told."""
    last_heard: dict[tuple[SnapshotId, int], SnapshotId] = field(
        default_factory=dict[tuple[SnapshotId, int], SnapshotId]
    )
    heard: int = 0
    fence: int = 1
    incarnations: int = 0
    """Restarts so far, of all; a new number for each."""

    def open(self, index: int, fence: int, incarnation: int, step: int) -> Actor:
        me = SnapshotId(index, fence, incarnation, 0)
        teachers = tuple(other for other in range(self.replicas) if other != index)
        terms = MailboxSettings(me=me, teachers=teachers, rule=self.rule, mode="async", threaded=self.threaded)
        net = Net()
        return Actor(me, Mailbox(self.connect(index), terms, NO_LEDGER, OfWeights(net), Counters()), net, step)

    def begin(self, index: int, fence: int, incarnation: int, step: int) -> Actor:
        actor = self.open(index, fence, incarnation, step)
        self.publish(actor)
        return actor

    def look(self, index: int) -> None:
        """With eyes that have seen nothing before."""
        self.incarnations += 1
        step = max(self.said[index][1], self.rule.burn_in_steps)
        self.hear(self.open(index, self.fence, self.incarnations, step))

    def publish(self, actor: Actor) -> None:
        who = SnapshotId(actor.me.replica, actor.me.fence, actor.me.incarnation, actor.step)
        if self.rule.due(actor.step):
            self.shown.setdefault(who.replica, set()).add(who)
        actor.box.publish(actor.step, actor.net.become(who))
        self.said[who.replica] = (actor.me, actor.step)

    def train(self, actor: Actor) -> None:
        self.hear(actor)
        actor.step += 1
        self.publish(actor)

    def hear(self, actor: Actor) -> None:
        heard = actor.box.read(actor.step)
        self.said[actor.me.replica] = (actor.me, actor.step)
        for held in heard:
            self.check(actor, held)
        if not self.threaded and actor.step >= self.rule.burn_in_steps:
            others = [self.shown[peer] for peer in sorted(self.shown) if peer != actor.me.replica]
            assert [held.header.id for held in heard] == [max(one) for one in others], "the newest there is, of all"

    def check(self, actor: Actor, held: Held) -> None:
        who = held.header.id
        self.heard += 1
        assert who in self.shown[who.replica]
        for name, array in held.arrays.items():
            assert (array == value_of(who)).all(), f"{name} of {who} is of another snapshot"
        before = self.last_heard.get((actor.me, who.replica), who)
        assert who >= before, "a reader never goes back"
        self.last_heard[actor.me, who.replica] = who
        assert held.offset_steps == actor.step - who.version
        assert held.lag_steps is not None
        assert held.lag_steps >= 0
        if self.threaded:
            return
        speaker, step = self.said[who.replica]
        if (speaker.fence, speaker.incarnation) == (who.fence, who.incarnation):
            assert held.lag_steps == step - who.version, "without a floor: never below 0 within an incarnation"
        else:
            assert held.lag_steps == max(step - who.version, 0)

    def happens(self, index: int, kind: str) -> None:
        actor = self.now.get(index)
        match kind:
            case "step" if actor is not None:
                self.train(actor)
            case "step before" if index in self.before:
                self.train(self.before[index])
            case "look":
                self.look(index)
            case "die":
                self.now.pop(index, None)
            case "restart" if actor is None and index not in self.ended:
                self.restart(index)
            case "end" if actor is not None and actor.step > self.rule.burn_in_steps:
                self.end(self.now.pop(index))
            case "attempt" if self.fence == 1:
                self.fence, self.before, self.now, self.ended = 2, self.now, {}, set()
                self.now = {index: self.begin(index, 2, 0, 1) for index in range(self.replicas)}
            case _:
                pass

    def restart(self, index: int) -> None:
        """From a checkpoint: with half the steps."""
        _, step = self.said[index]
        self.incarnations += 1
        self.now[index] = self.begin(index, self.fence, self.incarnations, step // 2)

    def end(self, actor: Actor) -> None:
        who = SnapshotId(actor.me.replica, actor.me.fence, actor.me.incarnation, actor.step)
        actor.box.publish_last(actor.step, actor.net.become(who))
        self.shown.setdefault(who.replica, set()).add(who)
        actor.box.close()
        self.ended.add(who.replica)


def run_schedule(schedule: Schedule, connect: Connect) -> int:
    """How often a peer was heard."""
    play = Play(schedule.rule, schedule.replicas, connect)
    play.now = {index: play.begin(index, 1, 0, 0) for index in range(schedule.replicas)}
    for index, kind in schedule.events:
        if index < schedule.replicas:
            play.happens(index, kind)
    for index in range(schedule.replicas):
        play.look(index)
    return play.heard


@settings(max_examples=150, deadline=None)
@given(schedule=SCHEDULES)
@example(schedule=STILL_SPEAKING)
def test_in_memory(schedule: Schedule) -> None:
    hub = Hub()
    run_schedule(schedule, lambda replica: MemoryTransport(hub, replica, keep=KEEP))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=SCHEDULES)
@example(schedule=STILL_SPEAKING)
def test_through_files(schedule: Schedule, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = RunDir(tmp_path_factory.mktemp("files"), "job")
    run_schedule(schedule, lambda replica: FilesTransport(run, replica, REPLICAS, keep=KEEP))


@pytest.fixture
def directory(ray_cluster: str, tmp_path: Path) -> Iterator[str]:
    """The namespace of a directory actor."""
    import ray

    from cluster.directory import start_directory

    actor = start_directory(tmp_path.name)
    ray.get(actor.pid.remote())
    yield tmp_path.name
    ray.kill(actor)


@pytest.mark.ray
@pytest.mark.parametrize("seed", [1, 2])
def test_through_the_object_store(seed: int, directory: str, tmp_path: Path) -> None:
    from cluster.transport import ObjectStoreTransport

    run = RunDir(tmp_path, "job")
    connect = lambda replica: ObjectStoreTransport(run, replica, namespace=directory, keep=KEEP)  # noqa: E731
    assert run_schedule(drawn(seed), connect) > 60


def test_with_helper_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they run in truth, each with its own thread: what is heard may be older, never mixed, never back."""
    monkeypatch.setattr(module, "POLL_INTERVAL_S", 0.001)
    run = RunDir(tmp_path, "job")
    play = Play(PublishRule(2, 3), 2, lambda replica: FilesTransport(run, replica, 2, keep=KEEP), threaded=True)
    play.now = {index: play.begin(index, 1, 0, 0) for index in range(2)}
    for tick in range(400):
        play.happens(0, "step")
        if tick % 4 == 0:
            play.happens(1, "step")
        if tick == 200:
            play.now[1].box._closing.set()  # pyright: ignore[reportPrivateUsage] - as if killed
            play.happens(1, "die")
            play.happens(1, "restart")
        if tick % 10 == 0:
            threading.Event().wait(0.005)
    for actor in play.now.values():
        actor.box.close()
    versions = {who.version for (_, peer), who in play.last_heard.items() if peer == 1 and who.incarnation == 1}
    assert versions, "the restarted one was heard"
