"""Codistillation against a mutual-learning loop written out here, and the exact invariants of the method."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from codistill import records
from codistill.data.loader import training_batches
from codistill.peers import PeerTeachers
from codistill.phase import Replica
from codistill.randomness import seed_everything
from codistill.recipes import open_recipe
from codistill.run_dir import RunDir
from codistill.spec import JobSpec, replica_name
from tests.support import final_weights, fingerprint, new_run, run_in_turns, small_spec


def plain_term(divergence: str, teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> torch.Tensor:
    """Written by torch's own functions."""
    soft, softened = F.softmax(teacher / temperature, dim=-1), F.log_softmax(student / temperature, dim=-1)
    match divergence:
        case "cross_entropy":
            return F.cross_entropy(student / temperature, soft) * temperature**2
        case "kl":
            return F.kl_div(softened, soft, reduction="batchmean") * temperature**2
        case "reverse_kl":
            return F.kl_div(soft.log(), softened, reduction="batchmean", log_target=True) * temperature**2
        case _:
            spread = (student - teacher) - (student - teacher).mean(-1, keepdim=True)
            return spread.square().mean() / 2


def mutual_learning(spec: JobSpec, divergence: str, temperature: float, weight: float) -> list[dict[str, torch.Tensor]]:
    """Simultaneous deep mutual learning (Zhang et al. 2018) of two nets, in plain PyTorch."""
    recipe = open_recipe(spec)
    nets, optimizers = [], []
    for index in range(2):
        seed_everything(spec.seed, index, "train", "init")
        nets.append(recipe.build_model())
        optimizers.append(torch.optim.SGD(nets[-1].parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4))
    batches = training_batches(recipe.split("train"), spec.data, Replica(0, 2, spec.seed), spec.training.batch_size)
    for step in range(spec.training.steps):
        batch = batches(step)
        logits = [net(batch.views["x"])["logits"] for net in nets]
        for me, other in ((0, 1), (1, 0)):
            soft = plain_term(divergence, logits[other].detach(), logits[me], temperature)
            optimizers[me].zero_grad()
            (F.cross_entropy(logits[me], batch.y) + weight * soft).backward()
        for optimizer in optimizers:
            optimizer.step()
    return [{name: p.detach() for name, p in net.state_dict().items()} for net in nets]


@pytest.mark.parametrize(
    ("divergence", "temperature"), [("cross_entropy", 2.0), ("kl", 2.0), ("reverse_kl", 2.0), ("logit_regression", 1.0)]
)
def test_lockstep_at_interval_1_is_simultaneous_mutual_learning(
    tmp_path: Path, divergence: str, temperature: float
) -> None:
    spec = small_spec(
        recipe={"batch_norm": False},
        method={"burn_in_steps": 0, "temperature": temperature, "weight": 0.7, "divergence": divergence},
        exchange={"interval_steps": 1},
        data={"kind": "same_order"},
        training={"schedule": {"kind": "constant"}},
    )
    run = new_run(tmp_path, spec)
    run_in_turns(run)
    for index, expected in enumerate(mutual_learning(spec, divergence, temperature, weight=0.7)):
        found = final_weights(run, index)
        for name, value in expected.items():
            assert_close(found[name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "change",
    [{"method": {"weight": 0.0}}, {"method": {"burn_in_steps": 12}}, {"method": {"burn_in_steps": 500}}],
    ids=["weight 0", "burn-in = steps", "burn-in > steps"],
)
def test_without_a_term_it_is_the_solo_run_bit_for_bit(tmp_path: Path, change: dict[str, Any]) -> None:
    together, alone = (
        new_run(tmp_path, small_spec(**change), "together"),
        new_run(tmp_path, small_spec(method={"kind": "solo"}), "alone"),
    )
    run_in_turns(together)
    run_in_turns(alone)
    for index in range(2):
        assert fingerprint(final_weights(together, index)) == fingerprint(final_weights(alone, index))


def test_the_term_changes_the_run(tmp_path: Path) -> None:
    together, alone = (
        new_run(tmp_path, small_spec(), "together"),
        new_run(tmp_path, small_spec(method={"kind": "solo"}), "alone"),
    )
    run_in_turns(together)
    run_in_turns(alone)
    assert fingerprint(final_weights(together, 0)) != fingerprint(final_weights(alone, 0))


def test_no_teacher_runs_during_burn_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = PeerTeachers.outputs

    def counted(self: PeerTeachers, batch: Any) -> Any:
        answers = original(self, batch)
        asked.append(len(answers))
        return answers

    monkeypatch.setattr(PeerTeachers, "outputs", counted)
    run_in_turns(new_run(tmp_path, small_spec(method={"burn_in_steps": 5})))
    assert asked[: 2 * 5] == [0] * 10
    assert asked[2 * 5 :] == [1] * 14


def ledger(run: RunDir, replica: int) -> list[dict[str, Any]]:
    return records.read(run, replica_name(replica), "ledger").to_pylist()


def test_versions_lags_and_offsets_follow_the_clock(tmp_path: Path) -> None:
    run = new_run(tmp_path, small_spec(training={"steps": 9}))
    run_in_turns(run)
    for replica, teacher in ((0, "replica-1"), (1, "replica-0")):
        rows = ledger(run, replica)
        assert [row["step"] for row in rows] == [3, 4, 5, 6, 7, 8]
        assert [row["version"] for row in rows] == [3, 4, 4, 6, 6, 8]
        assert [row["lag_steps"] for row in rows] == [0, 0, 1, 0, 1, 0]
        assert [row["offset_steps"] for row in rows] == [0, 0, 1, 0, 1, 0]
        assert {row["teacher"] for row in rows} == {teacher}
        assert {row["verdict"] for row in rows} == {"accepted"}
        assert [row["bytes_received"] > 0 for row in rows] == [True, True, False, True, False, True]


@pytest.mark.parametrize(("topology", "teachers"), [("all", 2), ("ring", 1), ("rotating", 1), ("auto", 2)])
def test_bytes_follow_the_formula(tmp_path: Path, topology: str, teachers: int) -> None:
    """Received per exchange: T * P * 4 bytes of parameters, and the buffers of BatchNorm with them."""
    spec = small_spec(replicas={"count": 3}, exchange={"topology": {"kind": topology}}, training={"steps": 9})
    run = new_run(tmp_path, spec)
    results = run_in_turns(run)
    model = open_recipe(spec).build_model()
    snapshot = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    exchanges = 4  # versions 3, 4, 6, 8
    for replica, result in results.items():
        assert result["bytes_received"] == teachers * exchanges * snapshot
        assert result["bytes_sent"] == exchanges * snapshot
        assert result["bytes_received"] == sum(row["bytes_received"] for row in ledger(run, replica))


def test_rotating_hears_one_teacher_at_a_time_and_another_after_each_exchange(tmp_path: Path) -> None:
    spec = small_spec(replicas={"count": 4}, exchange={"topology": {"kind": "rotating"}}, training={"steps": 11})
    run = new_run(tmp_path, spec)
    run_in_turns(run)
    for replica in range(4):
        rows = ledger(run, replica)
        assert [row["step"] for row in rows] == list(range(3, 11))
        assert [row["version"] for row in rows] == [3, 4, 4, 6, 6, 8, 8, 10]
        ahead = [1, 2, 2, 1, 1, 2, 2, 1]  # 2^(e mod 2), for exchanges 0, 1, 1, 2, 2, 3, 3, 4
        assert [row["teacher"] for row in rows] == [replica_name((replica + far) % 4) for far in ahead]
        assert [row["bytes_received"] > 0 for row in rows] == [True, True, False, True, False, True, False, True]


def test_number_of_teachers_is_a_metric(tmp_path: Path) -> None:
    run = new_run(tmp_path, small_spec())
    run_in_turns(run)
    table = records.read(run, "replica-0", "metrics")
    steps, counts = records.values(table, "distill/num_teachers")
    assert steps == list(range(1, 13))
    assert counts == [0.0] * 3 + [1.0] * 9
    assert pc.min(table["value"]).as_py() is not None


def test_strength_of_the_teachers_is_what_their_mean_takes_off_the_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worked out again from the logits that the peers answered and the labels of the batches; at temperature 1, since
    there the control smooths, whatever that of the term."""
    spec = small_spec(replicas={"count": 3}, method={"temperature": 2.0})
    asked: list[float] = []
    original = PeerTeachers.outputs

    def seen(self: PeerTeachers, batch: Any) -> Any:
        answers = original(self, batch)
        if answers:
            mean = sum(F.softmax(one["logits"].double(), dim=-1) for one in answers) / len(answers)
            asked.append(float((1 - mean[torch.arange(len(batch)), batch.y]).mean()))
        return answers

    monkeypatch.setattr(PeerTeachers, "outputs", seen)
    run = new_run(tmp_path, spec)
    run_in_turns(run)
    for index in range(3):
        steps, logged = records.values(records.read(run, replica_name(index), "metrics"), "distill/teacher_off_label")
        assert steps == list(range(4, 13)), "once anybody is heard"
        assert logged == pytest.approx(asked[index::3], abs=1e-6)


def logged(run: RunDir, name: str, replica: int = 0) -> dict[int, float]:
    """By the step it is of: logged after it, hence one later."""
    steps, values = records.values(records.read(run, replica_name(replica), "metrics"), name)
    return {step - 1: value for step, value in zip(steps, values, strict=True)}


def test_the_weight_follows_its_schedule_from_the_burn_in_on(tmp_path: Path) -> None:
    """Values of the ramp are those of the public code that has it, at a quarter, a half and three quarters."""
    ramp = {"weight": 2.0, "weight_schedule": {"kind": "ramp_up", "ramp_steps": 4}}
    run = new_run(tmp_path, small_spec(method=ramp))
    run_in_turns(run)
    expected = [0.0067379, 0.0600547, 0.2865048, 0.7316156, 1.0, 1.0, 1.0, 1.0, 1.0]
    found = logged(run, "distill/weight")
    assert list(found) == list(range(3, 12))
    assert list(found.values()) == pytest.approx([2 * value for value in expected], abs=1e-6)
    constant = new_run(tmp_path, small_spec(method={"weight": 2.0}), "constant")
    run_in_turns(constant)
    differ = [step for step, loss in logged(run, "train/loss").items() if loss != logged(constant, "train/loss")[step]]
    assert differ == list(range(3, 12)), "only the factor differs, from the first step with a teacher on"


def test_a_guard_weakens_a_teacher_that_does_harm_and_no_other(tmp_path: Path) -> None:
    """By e to the nats that it is worse; and a teacher's advantage is logged whether it is guarded or not."""
    runs = {}
    for name, guard in (("guarded", True), ("open", False)):
        runs[name] = new_run(tmp_path, small_spec(method={"harm_guard": guard}), name)
        run_in_turns(runs[name])
    better = logged(runs["guarded"], "distill/teacher_advantage")
    trust = logged(runs["guarded"], "distill/trust")
    for step, nats in better.items():  # one teacher, so the mean of the trust is its own
        assert trust[step] == pytest.approx(min(1.0, math.exp(nats)), abs=1e-6)
    assert min(trust.values()) < 1.0
    assert list(logged(runs["open"], "distill/teacher_advantage")) == list(better), "a metric always"
    assert not logged(runs["open"], "distill/trust")
    first_harm = min(step for step, value in trust.items() if value < 1.0)
    without, guarded = (logged(runs[name], "train/loss") for name in ("open", "guarded"))
    assert min(step for step, loss in without.items() if loss != guarded[step]) == first_harm
