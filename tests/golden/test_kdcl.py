"""KDCL: its four targets on chosen logits, its views, and its stale form against the live one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from codistill import combine, losses, records
from codistill.checkpoint import load
from codistill.data.loader import training_batches
from codistill.data.split import TensorSplit, held_out
from codistill.methods import plan
from codistill.methods.kdcl import errors, fold, report
from codistill.methods.stale_targets import everyone
from codistill.phase import Artifacts, Phase, Replica
from codistill.randomness import seed_everything
from codistill.recipes import open_recipe
from codistill.spec import JobSpec
from codistill.spec_errors import SpecError
from tests.datasets import write_images
from tests.golden.said import BATCH, Says, step_of
from tests.support import final_weights, new_run, run_in_turns, small_spec

Z = [torch.tensor([row]).double() for row in ([2.0, 1, -1], [1.0, 0.5, 0], [3.0, 2.9, -2])]
OF_0 = torch.tensor([0])
PAIR = [torch.tensor([[2.0, 1, -1], [0, 1, 0]]), torch.tensor([[1.0, 2, 0], [0.5, 3, -1]])]
OF_PAIR = torch.tensor([0, 1])
LABELLED = [combine.naive, combine.linear, combine.min_logit]


def some(seed: int = 0) -> tuple[list[Tensor], Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(20, 5, generator=random) for _ in range(3)], torch.randint(5, (20,), generator=random)


def each_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([losses.cross_entropy(z[None], y[None]) for z, y in zip(logits, labels, strict=True)])


# ---------------------------------------------------------------- targets


def test_naive_is_the_network_of_the_least_cross_entropy() -> None:
    assert each_loss(torch.cat(Z), OF_0.expand(3)).tolist() == pytest.approx([0.3490122, 0.6802697, 0.6479277])
    assert_close(combine.naive(Z, OF_0).softmax(-1), Z[0].softmax(-1))
    logits, labels = some()
    least = torch.stack([each_loss(one, labels) for one in logits]).amin(0)
    assert_close(each_loss(combine.naive(logits, labels), labels), least)


def test_min_logit_puts_no_class_further_above_the_label_than_any_network() -> None:
    target = combine.min_logit(Z, OF_0)
    assert target.tolist() == [[0, -1, -5]]
    assert_close(target.softmax(-1), torch.tensor([[0.7274752, 0.2676232, 0.0049017]]).double(), atol=1e-7, rtol=0)
    assert losses.cross_entropy(target, OF_0).item() == pytest.approx(0.3181754)
    logits, labels = some()
    least = torch.stack([each_loss(one, labels) for one in logits]).amin(0)
    assert bool((each_loss(combine.min_logit(logits, labels), labels) <= least + 1e-6).all())


def test_linear_finds_the_best_mixture_of_a_batch() -> None:
    above = torch.stack(PAIR, dim=1).double()  # [places, networks, classes]
    above = above - above.gather(-1, OF_PAIR.reshape(-1, 1, 1).expand(2, 2, 1))
    alpha = combine.mixture(above.unsqueeze(0), torch.full((1, 2), 0.5).double())
    assert_close(alpha, torch.tensor([[0.83723, 0.16277]]).double(), atol=1e-5, rtol=0)
    assert [losses.cross_entropy(z, OF_PAIR).item() for z in PAIR] == pytest.approx([0.4502285, 0.7516401])
    assert losses.cross_entropy(combine.linear(PAIR, OF_PAIR), OF_PAIR).item() == pytest.approx(0.4355552)


def test_a_batch_in_parts_has_the_mixture_of_the_whole() -> None:
    """Parts with unlike numbers of labels: each sample counts as in the whole batch."""
    logits, labels = some()
    labels[1:4] = losses.IGNORED
    cut, meet, sums = 5, Barrier(2), dict[int, Tensor]()

    def part(number: int, places: slice) -> Tensor:
        def add_up(mine: Tensor) -> Tensor:
            sums[number] = mine
            meet.wait(10)
            total = sums[0] + sums[1]
            meet.wait(10)
            return total

        return combine.linear([one[places] for one in logits], labels[places], add_up=add_up)

    with ThreadPoolExecutor(2) as both:
        found = list(both.map(part, range(2), [slice(cut), slice(cut, None)]))
    assert_close(torch.cat(found), combine.linear(logits, labels), atol=1e-6, rtol=0)


def test_linear_per_place_is_the_best_that_a_fine_grid_finds() -> None:
    logits, labels = some()
    found = each_loss(combine.linear(logits[:2], labels, per_place=True), labels)
    grid = [each_loss(a * logits[0] + (1 - a) * logits[1], labels) for a in torch.linspace(0, 1, 201).tolist()]
    assert bool((found <= torch.stack(grid).amin(0) + 1e-6).all())
    assert_close(found, torch.stack(grid).amin(0), atol=1e-3, rtol=0)


def test_networks_that_say_the_same_share_a_mixture_evenly() -> None:
    above = torch.tensor([[[[0.0, 1, 2]] * 3]]).double()
    assert_close(combine.mixture(above, torch.ones(1, 1).double()), torch.full((1, 3), 1 / 3).double())


@pytest.mark.parametrize("combiner", LABELLED)
def test_targets_by_labels_do_not_see_shifts_and_of_one_network_are_its_own(combiner: Any) -> None:
    logits, labels = some()
    shifted = combiner([one + shift for one, shift in zip(logits, (5.0, -3.0, 0.0), strict=True)], labels)
    assert_close(shifted.softmax(-1), combiner(logits, labels).softmax(-1), atol=1e-5, rtol=0)
    assert_close(combiner(logits[:1], labels).softmax(-1), logits[0].softmax(-1))


@pytest.mark.parametrize("combiner", LABELLED)
def test_of_sequences_each_place_is_a_sample_and_one_without_label_has_the_mean(combiner: Any) -> None:
    logits, labels = some()
    labels[3] = losses.IGNORED
    known = labels != losses.IGNORED
    found = combiner([one.reshape(4, 5, 5) for one in logits], labels.reshape(4, 5)).reshape(20, 5)
    assert_close(found[known], combiner([one[known] for one in logits], labels[known]))
    assert_close(found[~known], combine.mean_logits(logits)[~known])


@pytest.mark.parametrize(
    ("products", "weights", "negative"),
    [
        ([[0.04, 0.01], [0.01, 0.09]], [0.7272727, 0.2727273], 0),
        ([[0.04, 0.05], [0.05, 0.09]], [1.0, 0.0], 1),  # 4/3 and -1/3 before
        ([[1.0, 1.0], [1.0, 1.0]], [0.5, 0.5], 0),
        ([[0.0, 0.0], [0.0, 0.0]], [0.5, 0.5], 0),
    ],
)
def test_general_weighs_by_errors_in_common(products: list[list[float]], weights: list[float], negative: int) -> None:
    found, below = combine.held_out_weights(torch.tensor(products).double())
    assert_close(found, torch.tensor(weights).double(), atol=1e-6, rtol=0)
    assert below == negative


# ---------------------------------------------------------------- the method


def phase_of(recipe: dict[str, Any] | None = None, **method: Any) -> Phase:
    spec = small_spec(recipe=recipe or {}, method={"kind": "kdcl", **method}, replicas={"count": 1})
    (phase,) = plan(spec, open_recipe(spec), Replica(0, 1, 0))
    return phase


def test_each_network_has_its_label_loss_and_one_target() -> None:
    parts = {f"net{n}": Says(logits=one[0].tolist()) for n, one in enumerate(Z)}
    (update,) = phase_of(nets=3, weight=0.5).updates
    loss = update.loss(step_of(**parts))
    target = torch.log_softmax(torch.tensor([[0.0, -1, -5]]).double() / 2, dim=-1)
    each = [losses.cross_entropy(z, OF_0) + 0.5 * losses.kl_divergence(target, z, temperature=2.0) for z in Z]
    assert loss.value.item() == pytest.approx(sum(each).item())
    loss.value.backward()
    own = Z[1].clone().requires_grad_()
    (losses.cross_entropy(own, OF_0) + 0.5 * losses.kl_divergence(target, own, temperature=2.0)).backward()
    assert_close(parts["net1"].taps["logits"].grad, own.grad)


def test_general_measures_writes_and_hears_its_weights() -> None:
    phase = phase_of(target={"kind": "general", "held_out": 40})
    parts = {f"net{n}": Says(logits=one[0].tolist()) for n, one in enumerate(Z[:2])}
    step = step_of(**parts)
    off = torch.cat(Z[:2]).softmax(-1) - torch.tensor([1.0, 0, 0])
    sums = errors(step.learner, BATCH)
    assert [sums[key] for key in ("0,0", "0,1", "1,1")] == pytest.approx(
        [(off[0] @ off[0]).item(), (off[0] @ off[1]).item(), (off[1] @ off[1]).item()]
    )
    assert phase.state()["weights"].tolist() == [0.5, 0.5]
    total = {"0,0": 0.4, "0,1": 0.1, "1,0": 0.1, "1,1": 0.9, "count": 10.0}
    assert report(total)["distill/weight_net0"] == pytest.approx(0.7272727)
    heard = fold(phase.state(), total)
    (update,) = phase.updates
    loss = update.loss(replace(step, state=heard))
    said = [(z / 2).softmax(-1) for z in Z[:2]]
    target = (0.7272727 * said[0] + 0.2727273 * said[1]).log()
    each = [losses.cross_entropy(z, OF_0) + losses.kl_divergence(target, z, temperature=2.0) for z in Z[:2]]
    assert loss.value.item() == pytest.approx(sum(each).item(), abs=1e-6)


def test_a_run_folds_what_it_measures_into_its_state(tmp_path: Path) -> None:
    target = {"kind": "general", "held_out": 40, "refresh_steps": 4}
    run = new_run(tmp_path, small_spec(method={"kind": "kdcl", "target": target}, replicas={"count": 1}))
    run_in_turns(run)
    steps, logged = records.values(records.read(run, "replica-0", "metrics"), "distill/weight_net0")
    assert steps == [4, 8, 12]
    kept = load(run.checkpoints("replica-0"), 1, 12).tensors["state"]["weights"]
    assert kept.tolist() == pytest.approx([logged[-1], 1 - logged[-1]])
    assert logged[-1] != 0.5


def test_held_out_samples_are_the_same_for_every_seed_and_never_trained_on() -> None:
    split = TensorSplit(torch.arange(50), torch.zeros(50, dtype=torch.int64), {"x": torch.arange(50.0)})
    rest, out = held_out(split, 12)
    assert len(out.ids) == 12
    assert torch.cat([rest.ids, out.ids]).sort().values.tolist() == list(range(50))
    assert rest.read(rest.ids[:2]).views["x"].tolist() == rest.ids[:2].tolist()
    with pytest.raises(ValueError, match="hold out fewer"):
        held_out(split, 50)


def test_each_network_sees_a_view_of_its_own_where_the_recipe_augments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path)
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path))
    recipe = {"kind": "images", "shift_pixels": 2, "model": {"kind": "mlp", "width": 8}}
    own, common = (phase_of(recipe, own_views=one).batches(Artifacts())(3) for one in (True, False))
    assert (set(own.views), set(common.views)) == ({"x", "net1"}, {"x"})
    assert torch.equal(own.views["x"], common.views["x"]), "what the exported network sees is that of plain training"
    assert not torch.equal(own.views["x"], own.views["net1"])
    assert torch.equal(own.ids, common.ids)
    assert set(phase_of().batches(Artifacts())(3).views) == {"x"}
    seen = Says(logits=[0.0] * 3)
    shown: list[Tensor] = []
    seen.register_forward_pre_hook(lambda module, given: shown.append(given[0]))
    (update,) = phase_of(recipe).updates
    views = {"x": torch.zeros(1, 1), "net1": torch.ones(1, 1)}
    update.loss(replace(step_of(net0=seen, net1=seen), batch=replace(BATCH, views=views)))
    assert [view.item() for view in shown] == [0, 1]


# ---------------------------------------------------------------- over stale peers


def live(spec: JobSpec, kind: str) -> list[dict[str, Tensor]]:
    """Two networks and the target of both, from fresh predictions, in plain PyTorch."""
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
        with torch.no_grad():
            above = torch.stack([z - z.gather(1, batch.y[:, None]) for z in logits])
            best = torch.stack([F.cross_entropy(z, batch.y, reduction="none") for z in logits]).argmin(0)
            target = above.amin(0) if kind == "min_logit" else above[best, torch.arange(len(batch))]
        for net, optimizer in zip(nets, optimizers, strict=True):
            mine = net(batch.views["x"])["logits"]
            soft = 4 * F.kl_div(F.log_softmax(mine / 2, -1), F.softmax(target / 2, -1), reduction="batchmean")
            optimizer.zero_grad()
            (F.cross_entropy(mine, batch.y) + 0.7 * soft).backward()
        for optimizer in optimizers:
            optimizer.step()
    return [{name: p.detach() for name, p in net.state_dict().items()} for net in nets]


@pytest.mark.parametrize("kind", ["naive", "min_logit"])
def test_stale_in_lockstep_at_interval_1_is_live(tmp_path: Path, kind: str) -> None:
    spec = small_spec(
        recipe={"batch_norm": False},
        method={"burn_in_steps": 0, "temperature": 2.0, "weight": 0.7, "divergence": "kl", "target": {"kind": kind}},
        exchange={"interval_steps": 1},
        data={"kind": "same_order"},
        training={"schedule": {"kind": "constant"}},
    )
    run = new_run(tmp_path, spec)
    run_in_turns(run)
    for index, expected in enumerate(live(spec, kind)):
        found = final_weights(run, index)
        for name, value in expected.items():
            assert_close(found[name], value, atol=1e-6, rtol=0)


def test_a_peer_without_a_word_on_a_sample_says_what_the_student_says() -> None:
    own, peer = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3)
    mine, theirs = everyone(own, [peer], torch.tensor([[True, False]]))
    assert not mine.requires_grad
    assert theirs.tolist() == [[1, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("divergence", ["cross_entropy", "kl"])
def test_of_predictions_a_sample_that_nobody_spoke_of_adds_nothing(divergence: str) -> None:
    spec = small_spec(
        method={"burn_in_steps": 0, "divergence": divergence, "target": {"kind": "min_logit"}},
        exchange={"currency": {"kind": "predictions", "form": "dense"}},
    )
    (phase,) = plan(spec, open_recipe(spec), Replica(0, 2, 0))
    (update,) = phase.updates
    # Less that of the label, the student says [0, -1, -3] and the peer [0, -4, -5], which is the least of each class.
    peer = torch.tensor([[3.0, -1, -2]]).double()
    target = torch.tensor([[0.0, -4, -5]]).double().log_softmax(-1)
    measure = losses.kl_divergence if divergence == "kl" else losses.soft_cross_entropy
    for found, expected in ((True, measure(target, Z[0]).item()), (False, 0.0)):
        told = {"logits": peer, "age_steps": torch.zeros(1), "found": torch.tensor([found])}
        loss = update.loss(step_of({"peers": [told]}, net=Says(logits=[2.0, 1, -1])))
        assert loss.stats["train/distill_loss"].item() == pytest.approx(expected, abs=1e-6)
        assert bool(loss.stats["distill/teacher_off_label"] > 0) == found


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": {"kind": "kdcl", "target": {"kind": "linear"}}, "training": {"accumulate": 2}}, "per = 'sample'"),
        ({"method": {"target": {"kind": "linear"}}, "training": {"accumulate": 2}}, "accumulate .2. cuts"),
        ({"method": {"harm_guard": True}, "training": {"accumulate": 2}}, "leave out harm_guard"),
        ({"method": {"kind": "kdcl", "target": {"kind": "general", "held_out": 190}}}, "that method.target.held_out"),
        ({"method": {"target": {"kind": "naive"}, "harm_guard": True}}, "leave one of them out"),
        ({"method": {"target": {"kind": "naive"}}, "exchange": {"currency": {"kind": "predictions"}}}, "'dense'"),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        small_spec(**change)


def test_the_mean_stays_the_target_unless_told_otherwise() -> None:
    assert small_spec() == small_spec(method={"target": {"kind": "mean"}})
