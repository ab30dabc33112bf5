"""Local SGD and DiLoCo: against numbers worked out by hand and loops written out here, and through stops and deaths."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from codistill.averaging import Averaging, Outer, PeerMissing
from codistill.batch import Batch
from codistill.companion import Opening
from codistill.data.loader import training_batches
from codistill.exchange.mailbox import Mailbox
from codistill.exchange.snapshot import SnapshotId
from codistill.exchange.terms import Counters, MailboxSettings, PeerTimeout
from codistill.exchange.transport import Hub, MemoryTransport
from codistill.exchange.weights import OfWeights
from codistill.loop import Surroundings, train_phase
from codistill.numerics import Numerics
from codistill.phase import Artifacts, Group, Loss, Phase, Replica, Update
from codistill.randomness import seed_everything
from codistill.ranks import ALONE
from codistill.recipes import open_recipe
from codistill.records import LEDGER, Recorder
from codistill.replay import replay
from codistill.replica import replica_turns
from codistill.run_dir import RunDir
from codistill.spec import JobSpec
from codistill.work import PhaseInProgress
from tests.support import final_weights, fingerprint, new_run, run_in_turns, small_spec

# ---------------------------------------------------------------- by hand


class Point(nn.Module):
    """One weight in double precision, which begins at 8."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([8.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.theta - x


def mailbox(hub: Hub, rule: Any, replica: int, module: nn.Module) -> Mailbox[nn.Module]:
    settings = MailboxSettings(SnapshotId(replica, 1, 0, 0), (1 - replica,), rule, "lockstep", False, timeout_s=0.05)
    ledger = Recorder(None, LEDGER, fence=1, incarnation=0)
    return Mailbox(MemoryTransport(hub, replica, keep=9), settings, ledger, OfWeights(module), Counters())


def opened(hub: Hub, rule: Averaging, learner: nn.ModuleDict) -> Any:
    return rule.open(
        Opening(
            learner=learner,
            finished={},
            storage=Path(),
            build_part=lambda part, replica: learner[part],
            place=lambda module: module,
            open_mailbox=lambda shown, when, of_peer: mailbox(hub, when, rule.replica, shown),
            open_predictions=lambda form, when: pytest.fail("it is weights that are averaged"),
        )
    )


def valley(hub: Hub, replica: int, centre: float, outer: Outer | None) -> Generator[int, None, float]:
    """Five steps that each go half the way to `centre`, with an exchange after every second and the last."""
    batch = Batch(
        torch.arange(1), torch.zeros(1, dtype=torch.int64), {"x": torch.tensor([centre], dtype=torch.float64)}
    )
    phase = Phase(
        name="valley",
        steps=5,
        learner=lambda artifacts: nn.ModuleDict({"net": Point()}),
        batches=lambda artifacts: lambda step: batch,
        updates=[Update(lambda step: Loss(step.show("net")["logits"].square().sum() / 2), ("net",))],
        groups={"net": Group(("net.*",), lambda p: torch.optim.SGD(p, lr=0.5), lambda step: 1.0)},
    )
    work = PhaseInProgress.begin(phase, phase.learner(Artifacts()))
    work.rules["averaging"] = opened(hub, Averaging(2, 5, replica, 2, outer), work.learner)
    numerics = Numerics(torch.device("cpu"))
    around = Surroundings(numerics, ALONE, (0,), lambda: False, lambda s: None, lambda s, stats: None)
    yield from train_phase(phase, work, map(phase.batches(Artifacts()), count()), around)
    return work.learner["net"].theta.item()


def in_turns(turns: dict[int, Iterator[Any]]) -> dict[int, Any]:
    ended: dict[int, Any] = {}
    while len(ended) < len(turns):
        for key, turn in turns.items():
            if key not in ended:
                try:
                    next(turn)
                except StopIteration as end:
                    ended[key] = end.value
    return ended


# Replicas go from 8 towards 0 and 4: 8, 4, 2 and 8, 6, 5.
@pytest.mark.parametrize(
    ("outer", "expected"),
    [
        # Mean 3.5; then 0.875 and 3.875, mean 2.375; then 1.1875 and 3.1875.
        (None, 2.1875),
        (Outer(1.0, 0.0), 2.1875),
        # g = 8 - 3.5 = 4.5 = v, theta = 8 - (4.5 + 2.25) / 2 = 4.625; then 1.15625 and 4.15625, mean 2.65625,
        # g = 1.96875, v = 2.25 + g = 4.21875, theta = 4.625 - (1.96875 + 2.109375) / 2 = 2.5859375; then 1.29296875
        # and 3.29296875, mean 2.29296875, g = 0.29296875, v = 2.109375 + g = 2.40234375.
        (Outer(0.5, 0.5), 2.5859375 - (0.29296875 + 1.201171875) / 2),
    ],
    ids=["local SGD", "DiLoCo with lr 1, momentum 0", "DiLoCo"],
)
def test_three_exchanges_by_hand(outer: Outer | None, expected: float) -> None:
    hub = Hub()
    assert in_turns({at: valley(hub, at, centre, outer) for at, centre in ((0, 0.0), (1, 4.0))}) == {
        0: expected,
        1: expected,
    }


def test_the_outer_step_is_torchs_nesterov() -> None:
    torch.manual_seed(0)
    theta = nn.Parameter(torch.randn(5, dtype=torch.float64))
    ours, velocity = theta.detach().clone(), torch.zeros(5, dtype=torch.float64)
    optimizer = torch.optim.SGD([theta], lr=0.7, momentum=0.9, nesterov=True)
    for _ in range(4):
        mean = torch.randn(5, dtype=torch.float64)
        theta.grad = theta.detach() - mean
        optimizer.step()
        ours = Outer(0.7, 0.9).step(ours, mean, velocity)
        torch.testing.assert_close(ours, theta.detach(), atol=1e-14, rtol=0)


def test_nobody_is_averaged_with_whoever_is_not_there() -> None:
    """A peer that does not come is waited for, one that the gate refuses is an error; the weights stay as they were."""
    hub, learner = Hub(), nn.ModuleDict({"net": Point()})
    rule = opened(hub, Averaging(2, 4, 0, 2), learner)
    rule.after_step(1)
    with pytest.raises(PeerTimeout, match="version 2 of replica-1 did not come within"):
        rule.before_step(2)
    opened(hub, Averaging(2, 4, 1, 2), nn.ModuleDict({"net": Point()})).after_step(1)
    header, arrays = hub.snapshots[1][0]
    hub.snapshots[1][0] = dataclasses.replace(header, digest="damaged"), arrays
    with pytest.raises(PeerMissing, match="the weights of replica-1 after step 2 were refused"):
        rule.before_step(2)
    assert learner["net"].theta.item() == 8.0


# ---------------------------------------------------------------- whole runs


def spec_of(kind: str, **change: Any) -> JobSpec:
    # Exchanges after 5, 10 and 12 steps; checkpoints after 5, 10 and 12, thus before an exchange, and after the last.
    outer = {} if kind == "local_sgd" else {"outer_learning_rate": 0.7, "outer_momentum": 0.9}
    return small_spec(**{"method": {"kind": kind, **outer}, "exchange": {"interval_steps": 5}, **change})


def written_out(spec: JobSpec, replicas: int, outer: Callable[[list[nn.Parameter]], Any] | None) -> dict[str, Tensor]:
    """Local SGD or DiLoCo in plain PyTorch, the outer optimizer being torch's own."""
    recipe = open_recipe(spec)
    seed_everything(spec.seed, 0, "train", "init")
    shared = recipe.build_model()
    nets = [recipe.build_model() for _ in range(replicas)]
    for net in nets:
        net.load_state_dict(shared.state_dict())
    inner = [torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4) for net in nets]
    optimizer = None if outer is None else outer(list(shared.parameters()))
    feeds = [
        training_batches(recipe.split("train"), spec.data, Replica(at, replicas, spec.seed), spec.training.batch_size)
        for at in range(replicas)
    ]
    for step in range(spec.training.steps):
        for net, feed, one in zip(nets, feeds, inner, strict=True):
            one.zero_grad()
            recipe.task_loss(net(feed(step).views["x"]), feed(step)).backward()
            one.step()
        if step + 1 in (5, 10, 12):
            states = [net.state_dict() for net in nets]
            mean = {name: torch.stack([state[name] for state in states]).double().mean(0) for name in states[0]}
            if optimizer is not None:
                for name, parameter in shared.named_parameters():
                    parameter.grad = parameter.detach() - mean[name].float()
                optimizer.step()
                mean |= {name: parameter.detach() for name, parameter in shared.named_parameters()}
            for net in nets:
                net.load_state_dict(mean)
    return nets[0].state_dict()


@pytest.mark.parametrize("kind", ["local_sgd", "diloco"])
def test_a_whole_run_is_the_loop_written_out(tmp_path: Path, kind: str) -> None:
    """Three replicas, BatchNorm among the layers, an inner optimizer with momentum."""
    spec = spec_of(kind, replicas={"count": 3}, training={"schedule": {"kind": "constant"}})
    run = new_run(tmp_path, spec)
    results = run_in_turns(run)
    outer = None if kind == "local_sgd" else lambda p: torch.optim.SGD(p, lr=0.7, momentum=0.9, nesterov=True)
    expected = written_out(spec, 3, outer)
    found = [final_weights(run, index) for index in range(3)]
    assert len({fingerprint(weights) for weights in found}) == 1, "they end with one model"
    for name, value in expected.items():
        torch.testing.assert_close(found[0][name], value, atol=1e-6, rtol=0)
    snapshot = sum(weights.nbytes for weights in found[0].values())
    for result in results.values():
        assert (result["bytes_sent"], result["bytes_received"]) == (3 * snapshot, 3 * 2 * snapshot)


def test_diloco_without_outer_momentum_at_rate_1_is_local_sgd_bit_for_bit(tmp_path: Path) -> None:
    plain = new_run(tmp_path, spec_of("local_sgd"), "plain")
    like_it = {"kind": "diloco", "outer_learning_rate": 1.0, "outer_momentum": 0.0}
    outer = new_run(tmp_path, spec_of("diloco", method=like_it), "outer")
    for run in (plain, outer):
        run_in_turns(run)
    assert fingerprint(final_weights(outer, 0)) == fingerprint(final_weights(plain, 0))


def test_all_take_the_mean_of_what_travels_in_half_precision(tmp_path: Path) -> None:
    run = new_run(tmp_path, spec_of("local_sgd", exchange={"interval_steps": 12, "precision": "bf16"}))
    results = run_in_turns(run)
    ended = [final_weights(run, index) for index in range(2)]
    assert fingerprint(ended[0]) == fingerprint(ended[1])
    parameters = dict(open_recipe(run.read_spec()).build_model().named_parameters())
    whole = sum(weights.nbytes for weights in ended[0].values())
    assert results[0]["bytes_received"] == whole - sum(2 * p.numel() for p in parameters.values())


# ---------------------------------------------------------------- stops and deaths


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    prints: dict[str, str] = {}
    for kind in ("local_sgd", "diloco"):
        run = new_run(tmp_path_factory.mktemp("undisturbed"), spec_of(kind))
        run_in_turns(run)
        prints[kind] = fingerprint(final_weights(run, 0))
    return prints


def turns_of(
    run: RunDir, hub: Hub, replica: int, *, fence: int = 1, **more: Any
) -> Generator[int, None, dict[str, Any]]:
    return replica_turns(
        run,
        fence=fence,
        index=replica,
        connect=lambda scope: MemoryTransport(hub, scope.index, keep=scope.keep),
        **more,
    )


@pytest.mark.parametrize(("kind", "step"), [("local_sgd", 5), ("diloco", 5), ("diloco", 6), ("diloco", 11)])
def test_stopped_and_gone_on_with(tmp_path: Path, undisturbed: dict[str, str], kind: str, step: int) -> None:
    run, hub = new_run(tmp_path, spec_of(kind)), Hub()
    stop: list[int] = []
    run_in_turns(
        run, hub=hub, before_step=lambda replica, at: stop.extend([at] * (at == step)), should_stop=lambda: bool(stop)
    )
    run.start_attempt(2, time.time())  # with nothing left of what the first has published
    assert {entry["outcome"] for entry in run_in_turns(run, hub=Hub(), fence=2).values()} == {"succeeded"}
    assert [fingerprint(final_weights(run, index)) for index in range(2)] == [undisturbed[kind]] * 2


def test_stopped_while_it_waits_after_its_last_step(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    """Its last checkpoint is of step 12, before the last exchange; the peer has been through that and has ended."""
    run, hub, stop = new_run(tmp_path, spec_of("diloco")), Hub(), []
    waits, goes_on = turns_of(run, hub, 0, should_stop=lambda: bool(stop)), turns_of(run, hub, 1)
    for _ in range(1 + 2 * 11 + 1):  # once at the start, twice a step, and the last step is made
        next(waits)
        next(goes_on)
    next(waits)  # its last weights are out, the peer's are not
    stop.append("now")
    with pytest.raises(StopIteration) as stopped:
        next(waits)
    assert (stopped.value.value["outcome"], stopped.value.value["steps"]) == ("cancelled", 12)
    assert in_turns({1: goes_on})[1]["outcome"] == "succeeded"
    run.start_attempt(2, time.time())
    in_turns({at: turns_of(run, hub, at, fence=2) for at in range(2)})
    assert [fingerprint(final_weights(run, index)) for index in range(2)] == [undisturbed["diloco"]] * 2


@pytest.mark.parametrize(("kind", "step"), [("local_sgd", 3), ("diloco", 7), ("diloco", 10)])
def test_the_peer_of_one_that_died_waits_and_goes_on(
    tmp_path: Path, undisturbed: dict[str, str], kind: str, step: int
) -> None:
    """Replica 1 vanishes before a step and comes back from its last checkpoint, while replica 0 stands still. From what
    was kept each can be trained again alone."""
    run, hub = new_run(tmp_path, spec_of(kind, exchange={"interval_steps": 5, "keep_snapshots": True})), Hub()

    def die(at: int) -> None:
        if at == step:
            raise ConnectionError("gone")

    turns = {0: turns_of(run, hub, 0), 1: turns_of(run, hub, 1, before_step=die)}
    passed, ended = {0: 0, 1: 0}, {}
    while len(ended) < 2:
        replica = min((at for at in turns if at not in ended), key=lambda at: passed[at])  # whoever is behind
        try:
            at = next(turns[replica])
            passed[replica] = passed[replica] + 1 if passed[replica] >= 0 else 1 + 2 * at
        except ConnectionError:
            turns[replica], passed[replica] = turns_of(run, hub, 1), -1
        except StopIteration as end:
            ended[replica] = end.value
    assert {index: entry["incarnations"] for index, entry in ended.items()} == {0: 1, 1: 2}
    assert [fingerprint(final_weights(run, index)) for index in range(2)] == [undisturbed[kind]] * 2
    assert [replay(run, index).first_difference for index in range(2)] == [None, None]
