"""The loop: gradients, groups, phases, and what it refuses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from codistill import evaluate
from codistill.batch import Batch, Outputs
from codistill.companion import Teacher
from codistill.describe import describe
from codistill.exchange.terms import StopRequested
from codistill.loop import Surroundings, TrainingDiverged, finite, train_phase
from codistill.losses import IGNORED
from codistill.numerics import Numerics
from codistill.peers import PeerTeachers
from codistill.phase import Artifacts, Group, Learner, Loss, Phase, Step, Update
from codistill.ranks import ALONE, Ranks
from codistill.schedules import open_schedule
from codistill.spec import Constant, Cosine, Linear, Milestones
from codistill.work import OpenGroup, PhaseInProgress
from tests.support import fingerprint, new_run, run_in_turns, small_spec

ALONE_QUIETLY: dict[str, Any] = {
    "method": {"kind": "solo"}, "replicas": {"count": 1}, "training": {"log_interval_steps": 100},
}  # fmt: skip


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def group(*select: str, clip_norm: float | None = None) -> Group:
    return Group(select, sgd, lambda step: 1.0, clip_norm)


def batch(step: int) -> Batch:
    return Batch(torch.arange(2), torch.zeros(2, dtype=torch.int64), {"x": torch.ones(2, 3)})


def phase(learner: Learner, groups: dict[str, Group], updates: list[Update], steps: int = 1) -> Phase:
    return Phase("test", steps, lambda artifacts: learner, lambda artifacts: batch, updates, groups)


def around(should_stop: bool = False) -> Surroundings:
    numerics = Numerics(torch.device("cpu"))
    return Surroundings(numerics, ALONE, (0,), lambda: should_stop, lambda s: None, lambda s, stats: None)


def train(what: Phase) -> PhaseInProgress:
    work = PhaseInProgress.begin(what, what.learner(Artifacts()))
    for _ in train_phase(what, work, map(what.batches(Artifacts()), itertools.count()), around()):
        pass
    return work


def two_parts() -> Learner:
    torch.manual_seed(0)
    return nn.ModuleDict({"net": nn.Linear(3, 2), "other": nn.Linear(3, 2)})


def show_sum(part: str) -> Update:
    return Update(lambda step: Loss(step.learner[part](step.batch.views["x"]).sum()), trains=("net",))


def test_what_no_group_names_is_frozen() -> None:
    learner = two_parts()
    before = fingerprint(learner["other"].state_dict())
    both = Update(
        lambda step: Loss(sum(step.learner[p](step.batch.views["x"]).sum() for p in ("net", "other"))),  # pyright: ignore[reportArgumentType]
        trains=("net",),
    )
    train(phase(learner, {"net": group("net.*")}, [both]))
    assert fingerprint(learner["other"].state_dict()) == before
    assert all(parameter.grad is None for parameter in learner["other"].parameters())


def test_a_step_is_the_optimizers_step() -> None:
    learner = two_parts()
    weight = learner["net"].weight.detach().clone()
    train(phase(learner, {"net": group("net.*")}, [show_sum("net")]))
    assert torch.allclose(learner["net"].weight, weight - 0.1 * 2.0)  # two samples of ones
    clipped = two_parts()
    train(phase(clipped, {"net": group("net.*", clip_norm=1.0)}, [show_sum("net")]))
    moved = torch.cat(
        [(a - b).flatten() for a, b in zip(clipped["net"].parameters(), two_parts()["net"].parameters(), strict=True)]
    )
    assert moved.norm().item() == pytest.approx(0.1, rel=1e-4)


def test_the_schedule_scales_the_rate_of_each_step() -> None:
    learner = two_parts()
    weight = learner["net"].weight.detach().clone()
    halving = Group(("net.*",), sgd, lambda step: 0.5**step)
    train(phase(learner, {"net": halving}, [show_sum("net")], steps=3))
    assert torch.allclose(learner["net"].weight, weight - 0.1 * 2.0 * (1 + 0.5 + 0.25))


def test_random_numbers_of_a_step_are_a_function_of_its_name() -> None:
    ended: list[str] = []
    for before in (1, 2):
        learner = nn.ModuleDict({"net": nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2))})
        torch.manual_seed(0)
        for parameter in learner.parameters():
            nn.init.normal_(parameter)
        torch.manual_seed(before)  # whatever was drawn before, dropout drops the same
        train(phase(learner, {"net": group("net.*")}, [show_sum("net")], steps=3))
        ended.append(fingerprint(learner.state_dict()))
    assert ended[0] == ended[1]


def test_several_updates_each_see_the_last_ones_effect() -> None:
    learner = two_parts()
    seen: list[float] = []

    def loss(step: Step) -> Loss:
        value = step.learner["net"](step.batch.views["x"]).sum()
        seen.append(value.item())
        return Loss(value)

    train(phase(learner, {"net": group("net.*")}, [Update(loss, ("net",)), Update(loss, ("net",))]))
    assert seen[1] < seen[0]


def test_a_group_that_no_loss_reaches_is_named() -> None:
    with pytest.raises(ValueError, match=r"group 'net' trains other\.weight, other\.bias, but no loss reaches it"):
        train(phase(two_parts(), {"net": group("net.*", "other.*")}, [show_sum("net")]))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_with_masked_labels_is_not_cut(accumulate: int) -> None:
    learner = two_parts()
    what, work = phase(learner, {"net": group("net.*")}, [show_sum("net")]), PhaseInProgress.begin
    masked = Batch(torch.arange(2), torch.tensor([0, IGNORED]), {"x": torch.ones(2, 3)})
    where = replace(around(), numerics=Numerics(torch.device("cpu"), accumulate=accumulate))
    steps = train_phase(what, work(what, learner), iter([masked]), where)
    if accumulate == 1:
        assert list(steps) == [0, 0, 0]
        return
    with pytest.raises(ValueError, match=r"1 of 2 labels of step 0 are masked \(-100\).*training\.accumulate"):
        list(steps)


class Comes(Teacher):
    """Somebody who is not there before step 2."""

    def __init__(self) -> None:
        self.step = 0

    def before_step(self, step: int) -> None:
        self.step = step

    def outputs(self, batch: Batch) -> Sequence[Outputs]:
        return [{"logits": torch.ones(2, 3)}] if self.step >= 2 else []


def taught(*, forgotten: bool = False) -> Iterator[PhaseInProgress]:
    """Part `other`, decayed, and taught by `Comes` alone, in an update of its own; the work after each step."""
    learner = two_parts()

    def others(step: Step) -> Loss:
        said = step.targets["peer"]
        return Loss(learner["other"](said[0]["logits"]).sum() if said and not forgotten else torch.zeros(()))

    adam = Group(
        ("other.*",), lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5), lambda s: 1.0
    )
    updates = [show_sum("net"), Update(others, trains=("other",))]
    what = phase(learner, {"net": group("net.*"), "other": adam}, updates, steps=3)
    work = PhaseInProgress.begin(what, learner)
    work.teachers["peer"] = Comes()
    done = 0
    for _ in train_phase(what, work, map(batch, itertools.count()), around()):
        if work.step > done:
            done = work.step
            yield work


def test_what_nobody_is_there_to_teach_rests_and_its_optimizer_begins_with_its_first_step() -> None:
    begun = two_parts()["other"].weight
    ended = [work.learner["other"].weight.detach().clone() for work in taught()]
    assert torch.equal(ended[0], begun)
    assert torch.equal(ended[1], begun)
    # Weight decay and the rate once, since Adam's first step is as long as its rate.
    assert torch.allclose(ended[2], begun * (1 - 0.1 * 0.5) - 0.1)


def test_once_all_teachers_are_heard_a_group_that_no_loss_reaches_is_named() -> None:
    steps = taught(forgotten=True)
    assert [next(steps).step, next(steps).step] == [1, 2]
    with pytest.raises(ValueError, match=r"group 'other' trains other\.weight, other\.bias, but no loss reaches it"):
        next(steps)


def test_a_group_that_selects_nothing_is_named() -> None:
    with pytest.raises(ValueError, match=r"a group selects 'head\.\*', but the learner has only net\.bias"):
        train(phase(two_parts(), {"net": group("net.*", "head.*")}, [show_sum("net")]))


def test_a_loss_that_is_no_number_ends_training_with_advice() -> None:
    with pytest.raises(TrainingDiverged, match=r"the loss after step 7 is nan; lower the learning rate"):
        finite({"train/loss": torch.tensor(float("nan"))}, 7)


def test_a_stop_comes_between_steps() -> None:
    what = phase(two_parts(), {"net": group("net.*")}, [show_sum("net")])
    work = PhaseInProgress.begin(what, what.learner(Artifacts()))
    turns = train_phase(what, work, map(batch, itertools.count()), around(should_stop=True))
    assert next(turns) == 0
    with pytest.raises(StopRequested):
        next(turns)
    assert work.step == 0


def test_cosine_warms_up_and_ends_at_zero() -> None:
    cosine = open_schedule(Cosine(warmup_steps=2), 10)
    assert [cosine(step) for step in (0, 1, 2, 6, 10)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0])
    linear = open_schedule(Linear(warmup_steps=2, final_factor=0.5), 10)
    assert [linear(step) for step in (0, 1, 2, 6, 10)] == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5])
    milestones = open_schedule(Milestones(steps=(3, 6), factor=0.1), 10)
    assert [milestones(step) for step in (2, 3, 5, 6)] == pytest.approx([1.0, 0.1, 0.1, 0.01])
    assert open_schedule(Constant(warmup_steps=4), 10)(1) == pytest.approx(0.5)


def test_peers_get_no_gradient_and_change_only_when_a_snapshot_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prints: dict[int, list[str]] = {}
    original = PeerTeachers.before_step

    def spied(self: PeerTeachers, step: int) -> None:
        original(self, step)
        for peer, module in self._modules.items():  # pyright: ignore[reportPrivateUsage]
            assert not module.training
            assert all(not p.requires_grad and p.grad is None for p in module.parameters())
            prints.setdefault(1 - peer, []).append(fingerprint(module.state_dict()))

    monkeypatch.setattr(PeerTeachers, "before_step", spied)
    run_in_turns(new_run(tmp_path, small_spec(training={"steps": 9})))
    for seen in prints.values():  # steps 3..8 hear versions 3, 4, 4, 6, 6, 8
        assert [a == b for a, b in itertools.pairwise(seen)] == [False, True, False, True, False]


@pytest.mark.parametrize(("mode", "steps", "sent"), [("async", 12, 6), ("async", 11, 6), ("lockstep", 12, 5)])
def test_the_finished_model_is_left_to_those_still_training(tmp_path: Path, mode: str, steps: int, sent: int) -> None:
    """Versions 3, 4, 6, 8, 10, and the last one where somebody may hear it that nobody waits for."""
    results = run_in_turns(new_run(tmp_path, small_spec(training={"steps": steps}, exchange={"mode": mode})))
    snapshot = results[0]["bytes_sent"] / sent
    assert snapshot == describe(small_spec())["bytes_per_snapshot"]


@pytest.mark.parametrize(("poisoned", "noticed", "left"), [(7, 10, [5]), (11, 12, [5, 10])])
def test_weights_that_are_no_numbers_take_the_place_of_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poisoned: int, noticed: int, left: list[int]
) -> None:
    """Neither of one between nor of the last, before which the loss was a number still."""
    step_once = OpenGroup.step

    def step_badly(self: OpenGroup, step: int, scaler: Any) -> None:
        step_once(self, step, scaler)
        if step == poisoned:
            next(iter(self.parameters.values())).data.fill_(float("nan"))

    monkeypatch.setattr(OpenGroup, "step", step_badly)
    run = new_run(tmp_path, small_spec(**ALONE_QUIETLY))
    with pytest.raises(TrainingDiverged, match=f"the weights after step {noticed} are not finite; lower the learning"):
        run_in_turns(run)
    assert sorted(path.name for path in run.checkpoints("replica-0").iterdir()) == [f"0001-{n:012d}" for n in left]


def test_a_quality_that_is_no_number_ends_training_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "sums", lambda logits, labels: {"count": 1.0, "correct": 0.0, "nats": math.inf})
    with pytest.raises(TrainingDiverged, match="eval/log_loss after step 12 is inf; lower the learning rate"):
        run_in_turns(new_run(tmp_path, small_spec(**ALONE_QUIETLY)))


def test_a_rank_whose_weights_are_numbers_saves_nothing_where_anothers_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one would wait for ever for the other."""
    monkeypatch.setattr(Ranks, "any", lambda self, mine: True)  # of which another rank told, so of a stop
    run = new_run(tmp_path, small_spec(**ALONE_QUIETLY))
    with pytest.raises(TrainingDiverged, match="the weights after step 0"):
        run_in_turns(run)
    assert not run.checkpoints("replica-0").exists()


def test_large_weights_are_finite_and_buffers_count() -> None:
    what = phase(two_parts(), {"net": group("net.*")}, [show_sum("net")])
    work = PhaseInProgress.begin(what, what.learner(Artifacts()))
    with torch.no_grad():
        work.learner["net"].weight.fill_(1e30)
    assert work.is_finite, "though its square is not"
    work.learner["other"].register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    assert work.is_finite, "on purpose"
    for wrong in ("nan", "inf"):
        work.learner["other"].register_buffer("seen", torch.tensor([0.0, float(wrong)]))
        assert not work.is_finite
