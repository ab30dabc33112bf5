"""Predictions as currency against a loop written out here, and what must not depend on who is found."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from codistill import records
from codistill.data.loader import training_batches
from codistill.divergence import advantage, pull
from codistill.losses import off_label
from codistill.methods.codistillation import peers_of
from codistill.phase import Replica
from codistill.randomness import seed_everything
from codistill.recipes import open_recipe
from codistill.run_dir import RunDir
from codistill.spec import Divergence, JobSpec, replica_name
from codistill.teachers import PeerPredictions
from tests.support import final_weights, new_run, run_in_turns, small_spec

PREDICTIONS = {"currency": {"kind": "predictions"}}
DIVERGENCES: list[Divergence] = ["cross_entropy", "kl", "reverse_kl", "logit_regression"]


def tiny(**change: Any) -> JobSpec:
    """40 digits in batches of 10, lockstep at interval 1 from step 0: in each epoch of 4 steps every sample once."""
    change.setdefault("training", {"batch_size": 10, "schedule": {"kind": "constant"}})
    change.setdefault("exchange", {**PREDICTIONS, "interval_steps": 1})
    return small_spec(
        recipe={"batch_norm": False, "train_size": 40},
        method={"burn_in_steps": 0, "weight": 0.7, "divergence": "kl"},
        **change,
    )


def learning_from_what_was_said(spec: JobSpec) -> tuple[list[dict[str, torch.Tensor]], list[list[float]]]:
    """Two nets in plain PyTorch: each is pulled to what the other predicted for the sample in the last epoch. Returns
    weights, and the mean age in each step."""
    recipe = open_recipe(spec)
    nets, optimizers, batches = [], [], []
    for index in range(2):
        seed_everything(spec.seed, index, "train", "init")
        nets.append(recipe.build_model())
        optimizers.append(torch.optim.SGD(nets[-1].parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4))
        who = Replica(index, 2, spec.seed)
        batches.append(training_batches(recipe.split("train"), spec.data, who, spec.training.batch_size))
    said: list[dict[int, tuple[int, torch.Tensor]]] = [{}, {}]
    ages: list[list[float]] = [[], []]
    for step in range(spec.training.steps):
        news: list[dict[int, tuple[int, torch.Tensor]]] = []
        for me, other in ((0, 1), (1, 0)):
            batch = batches[me](step)
            logits = nets[me](batch.views["x"])["logits"]
            term, found = torch.zeros(()), []
            for row, sample in enumerate(batch.ids.tolist()):
                if sample in said[other]:
                    made_at, target = said[other][sample]
                    found.append(step - made_at)
                    term = term + F.kl_div(F.log_softmax(logits[row], -1), target, reduction="sum", log_target=True)
            optimizers[me].zero_grad()
            (F.cross_entropy(logits, batch.y) + 0.7 * term / len(batch)).backward()
            if found:
                ages[me].append(sum(found) / len(found))
            halves = F.log_softmax(logits.detach(), -1).half().float()
            told = F.log_softmax(halves, -1)
            news.append({sample: (step, told[row]) for row, sample in enumerate(batch.ids.tolist())})
        for me in range(2):
            optimizers[me].step()
            said[me] |= news[me]
    return [{name: p.detach() for name, p in net.state_dict().items()} for net in nets], ages


@pytest.mark.parametrize("data", ["same_order", "same_set"])
def test_in_lockstep_each_learns_from_what_the_other_said_an_epoch_ago(tmp_path: Path, data: str) -> None:
    spec = tiny(data={"kind": data})
    run = new_run(tmp_path, spec)
    run_in_turns(run)
    expected, ages = learning_from_what_was_said(spec)
    for index in range(2):
        found = final_weights(run, index)
        for name, value in expected[index].items():
            assert_close(found[name], value, atol=2e-6, rtol=0)
        logged = logged_by(run, index, "predictions/mean_age_steps")
        assert [age for age in logged if age] == pytest.approx(ages[index])
        if data == "same_order":
            assert logged_by(run, index, "distill/num_teachers") == [0.0] * 4 + [1.0] * 8
            off_label_by_step = logged_by(run, index, "distill/teacher_off_label")
            assert off_label_by_step[:4] == [0.0] * 4
            assert min(off_label_by_step[4:]) > 0.5
            assert all(1 <= age <= 7 for age in ages[index])
            assert sum(ages[index]) / len(ages[index]) == pytest.approx(4.0), "an epoch"
            assert logged_by(run, index, "predictions/found")[-1] == 80
            assert logged_by(run, index, "predictions/missed")[-1] == 40, "the first epoch"


def logged_by(run: RunDir, replica: int, name: str) -> list[float]:
    return records.values(records.read(run, replica_name(replica), "metrics"), name)[1]


def test_what_is_too_old_is_not_heard(tmp_path: Path) -> None:
    run = new_run(tmp_path, tiny(exchange={**PREDICTIONS, "interval_steps": 1, "max_offset_steps": 3}))
    run_in_turns(run)
    assert max(logged_by(run, 0, "predictions/mean_age_steps")) <= 3
    teachers = logged_by(run, 0, "distill/num_teachers")
    assert 0 < sum(teachers) < 8


@pytest.mark.parametrize("guarded", [False, True])
def test_draws_leave_the_advantage_of_a_teacher_as_it_is(tmp_path: Path, guarded: bool) -> None:
    """In the first step with teachers replicas are those of solo training, whatever form was sent."""
    found = {}
    for form in ("dense", "sampled"):
        currency = {"kind": "predictions", "form": form, "draws": 3}
        spec = tiny(
            exchange={"currency": currency, "interval_steps": 1},
            data={"kind": "same_order"},
            training={"steps": 5, "batch_size": 10},
        )
        method = spec.method.model_copy(update={"harm_guard": guarded})
        run = new_run(tmp_path, spec.model_copy(update={"method": method}), form)
        run_in_turns(run)
        names = ["distill/teacher_advantage", "train/task_loss"] + ["distill/trust"] * guarded
        found[form] = [logged_by(run, 0, name)[-1] for name in names]
    assert found["dense"] == pytest.approx(found["sampled"], rel=2e-3)
    assert found["dense"][0] != 0


def test_bytes_follow_the_formula(tmp_path: Path) -> None:
    """Interval x batch x bytes of a row, for versions 3 (the last interval of burn-in), 4, 6, 8; a frame for each."""
    spec = small_spec(exchange=PREDICTIONS, training={"steps": 9}, replicas={"count": 3})
    run = new_run(tmp_path, spec)
    results = run_in_turns(run)
    rows = (2 + 1 + 2 + 2) * 16
    for replica, result in results.items():
        ledger = records.read(run, replica_name(replica), "ledger").to_pylist()
        assert [(row["step"], row["version"]) for row in ledger[::2]] == [
            (3, 3),
            (4, 4),
            (5, 4),
            (6, 6),
            (7, 6),
            (8, 8),
        ]
        assert rows * (16 + 2 * 10) <= result["bytes_sent"] <= rows * (16 + 2 * 10) + 4 * 1024
        assert result["bytes_received"] == 2 * result["bytes_sent"] == sum(row["bytes_received"] for row in ledger)


def test_rotating_lets_one_speak_at_a_time_and_listens_to_all(tmp_path: Path) -> None:
    spec = small_spec(
        exchange={**PREDICTIONS, "topology": {"kind": "rotating"}},
        replicas={"count": 4},
        recipe={"train_size": 20},
        training={"steps": 9, "batch_size": 20},
    )
    run = new_run(tmp_path, spec)
    run_in_turns(run)
    for replica in range(4):
        ledger = records.read(run, replica_name(replica), "ledger").to_pylist()
        heard = {row["teacher"] for row in ledger if row["step"] == 8}
        assert heard == {replica_name((replica + far) % 4) for far in (1, 2)}
        assert logged_by(run, replica, "distill/num_teachers")[3:] == [1.0] * 6
    source = peers_of(spec, open_recipe(spec), Replica(1, 4, 0))
    assert isinstance(source, PeerPredictions)
    assert [source.teachers_in(step) for step in (3, 4, 5, 6, 8)] == [(2,), (3,), (3,), (2,), (3,)]


# ---------------------------------------------------------------- the term, where not everybody is found


def term_by_hand(divergence: str, peers: list[torch.Tensor], student: torch.Tensor, temperature: float) -> torch.Tensor:
    """Of one sample, by its peers, float64."""
    log_student = F.log_softmax(student / temperature, -1)
    if divergence == "logit_regression":
        target = sum(peer - peer.mean() for peer in peers) / len(peers)
        return (student - student.mean() - target).square().sum() / (2 * len(student))
    target = sum(F.softmax(peer / temperature, -1) for peer in peers) / len(peers)
    value = {
        "cross_entropy": -(target * log_student).sum(),
        "kl": (target * (target.log() - log_student)).sum(),
        "reverse_kl": (log_student.exp() * (log_student - target.log())).sum(),
    }
    return value[divergence] * temperature**2


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("length", [None, 3], ids=["samples", "sequences"])
def test_the_term_is_a_sum_over_found_samples_divided_by_all(divergence: Divergence, length: int | None) -> None:
    torch.manual_seed(0)
    shape = (4, 5) if length is None else (4, length, 5)
    student = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    peers = [torch.randn(shape, dtype=torch.float64) for _ in range(3)]
    found = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 1], [1, 0, 0, 0]]).bool()
    temperature = 1.0 if divergence == "logit_regression" else 2.0
    pulled = pull(divergence, peers, student, temperature=temperature, present=found)
    expected = torch.zeros((), dtype=torch.float64)
    places = [()] if length is None else [(place,) for place in range(length)]
    for sample in range(4):
        heard = [peer[sample] for peer, known in zip(peers, found, strict=True) if known[sample]]
        for place in places if heard else []:
            at = [peer[place] for peer in heard]
            expected = expected + term_by_hand(divergence, at, student[(sample, *place)], temperature)
    expected = expected / (4 * len(places))
    assert_close(pulled.loss, expected)
    assert pulled.heard is not None
    assert pulled.heard.tolist() == [True, False, True, True]
    (gradient,) = torch.autograd.grad(pulled.loss, student)
    assert torch.isfinite(gradient).all()
    assert (gradient[1] == 0).all()
    assert (gradient[[0, 2, 3]] != 0).any(-1).all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("peers", [1, 2, 3, 7])
def test_with_all_found_it_is_the_formula_of_weights(divergence: Divergence, peers: int) -> None:
    torch.manual_seed(peers)
    student = torch.randn(33, 10, requires_grad=True)
    said = [3 * torch.randn(33, 10) for _ in range(peers)]
    plain = pull(divergence, said, student)
    masked = pull(divergence, said, student, present=torch.ones(peers, 33, dtype=torch.bool))
    assert_close(plain.loss, masked.loss, atol=1e-6, rtol=1e-6)
    assert_close(plain.target, masked.target, atol=1e-6, rtol=1e-6)
    assert_close(*(torch.autograd.grad(one.loss, student)[0] for one in (plain, masked)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_with_nobody_found_the_term_is_0_and_pulls_nowhere(divergence: Divergence) -> None:
    student = torch.randn(6, 10, requires_grad=True)
    pulled = pull(divergence, [torch.zeros(6, 10)], student, present=torch.zeros(1, 6, dtype=torch.bool))
    assert pulled.loss.item() == 0
    assert (torch.autograd.grad(pulled.loss, student)[0] == 0).all()
    assert off_label(pulled.target, torch.zeros(6, dtype=torch.int64), heard=pulled.heard).item() == 0


def test_what_is_taken_off_the_label_counts_the_heard() -> None:
    target = torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]]).log()
    heard = torch.tensor([True, False, True])
    labels = torch.tensor([0, 0, 0])
    assert off_label(target, labels, heard=heard).item() == pytest.approx((0.25 + 0.75) / 3)
    assert off_label(target, labels).item() == pytest.approx(1.5 / 3)
    assert math.isclose(off_label(target, torch.tensor([0, 0, -100]), heard=heard).item(), 0.25 / 2, rel_tol=1e-6)


@pytest.mark.parametrize("length", [None, 2], ids=["samples", "sequences"])
def test_advantage_is_compared_on_what_each_teacher_has_spoken_of(length: int | None) -> None:
    torch.manual_seed(1)
    shape = (4,) if length is None else (4, length)
    student, teachers = torch.randn(*shape, 3).double(), [torch.randn(*shape, 3).double() for _ in range(3)]
    labels = torch.randint(3, shape)
    present = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    better = advantage(teachers, student, labels, present=present)
    for peer, known in ((0, [0, 1, 3]), (2, [0, 1, 2, 3])):
        (expected,) = advantage([teachers[peer][known]], student[known], labels[known])
        assert_close(better[peer], expected)
    assert better[1] == 0
    told = [teacher.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1) for teacher in teachers]
    assert_close(advantage([torch.zeros(())] * 3, student, labels, present=present, log_labels=told), better)
    every = advantage(teachers, student, labels)
    assert_close(advantage([torch.zeros(())] * 3, student, labels, log_labels=told), every)
    labels[0] = -100
    assert_close(advantage(teachers, student, labels, log_labels=told), advantage(teachers, student, labels))
    (expected,) = advantage([teachers[0][1:]], student[1:], labels[1:])
    assert_close(advantage(teachers[:1], student, labels), expected[None], msg="what has no label counts in no mean")


def test_of_a_batch_in_parts_each_part_has_the_advantage_of_the_whole() -> None:
    """Parts with unlike numbers of samples spoken of: each counts as in the whole batch."""
    torch.manual_seed(2)
    student, teachers = torch.randn(5, 3).double(), [torch.randn(5, 3).double() for _ in range(2)]
    labels, present = torch.tensor([0, 2, -100, 1, 1]), torch.tensor([[1, 1, 1, 0, 1], [0, 0, 0, 1, 1]]).bool()

    def part(places: slice, add_up: Callable[[Tensor], Tensor]) -> Tensor:
        said = [teacher[places] for teacher in teachers]
        return advantage(said, student[places], labels[places], present=present[:, places], add_up=add_up)

    sums: list[Tensor] = []
    parts = slice(3), slice(3, None)
    for places in parts:
        part(places, lambda mine: sums.append(mine) or mine)
    nats = [one.log_softmax(-1)[range(5), labels.clamp(min=0)] for one in (student, *teachers)]
    expected = [(nats[1] - nats[0])[[0, 1, 4]].mean(), (nats[2] - nats[0])[[3, 4]].mean()]
    for places in parts:
        assert part(places, lambda _: sums[0] + sums[1]).tolist() == pytest.approx([float(one) for one in expected])
