"""Attention over stale peers: by hand, on chosen logits, and against a loop written out here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from codistill.data.loader import training_batches
from codistill.methods import plan
from codistill.phase import Phase, Replica
from codistill.randomness import seed_everything
from codistill.recipes import Recipe, open_recipe
from codistill.spec import JobSpec
from codistill.spec_errors import SpecError
from codistill.surgery.attention import Listener
from tests.golden.said import S, Says, T, step_of
from tests.support import final_weights, merge, new_run, run_in_turns, small_spec

THIRD = [0.0, 3.0, 1.0]
TARGET = {"target": {"kind": "attention"}, "divergence": "kl"}


def phase_of(recipe: Recipe | None = None, **method: Any) -> Phase:
    spec = small_spec(method={**TARGET, **method}, replicas={"count": 3})
    (phase,) = plan(spec, recipe or open_recipe(spec), Replica(0, 3, 0))
    return phase


def by_hand() -> Listener:
    listener = Listener(2)
    listener.attention.listens.weight = nn.Parameter(torch.diag(torch.tensor([1.0, 2.0])))
    listener.attention.speaks.weight = nn.Parameter(torch.eye(2))
    return listener


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ([1.0, 0.0], [0.4223188, 0.1553624, 0.4223188]),
        ([0.0, 1.0], [0.0633789, 0.4683105, 0.4683105]),
        ([1.0, 1.0], [0.0900306, 0.2447285, 0.6652410]),
    ],
)
def test_a_replica_has_the_row_of_attention_that_is_its_own(own: list[float], expected: list[float]) -> None:
    speakers = [torch.tensor([h]) for h in ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0])]
    assert_close(by_hand()(torch.tensor([own]), speakers), torch.tensor([expected]), atol=1e-6, rtol=0)


class Fixed(nn.Module):
    """Listens as it is told."""

    def __init__(self, *alpha: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([alpha or (0.5, 0.5)], dtype=torch.float64))
        self.shown: list[float] = []

    def forward(self, own: Tensor, speakers: list[Tensor]) -> Tensor:
        self.shown = [one.item() for one in (own, *speakers)]
        return self.alpha


@pytest.mark.parametrize(
    ("itself", "alpha", "shown", "attended"),
    [(False, (0.25, 0.75), [4, 5, 6], 1.7547654), (True, (0.2, 0.3, 0.5), [4, 4, 5, 6], 2.8000941)],
)
def test_the_loss_is_a_divergence_from_a_mixture(
    itself: bool, alpha: tuple[float, ...], shown: list[int], attended: float
) -> None:
    """To so many it listens: 0.25^-0.25 * 0.75^-0.75, and likewise of the three."""
    target = {"target": {"kind": "attention", "itself": itself}}
    (update,) = phase_of(temperature=3.0, weight=0.5, burn_in_steps=0, **target).updates
    peers = [
        {name: torch.tensor([tap], dtype=torch.float64, requires_grad=True) for name, tap in taps.items()}
        for taps in ({"logits": T, "features": [5.0]}, {"logits": THIRD, "features": [6.0]})
    ]
    step = step_of({"peers": peers}, net=Says(logits=S, features=[4.0]), attention=Fixed(*alpha))
    loss = update.loss(step)
    z = torch.tensor(S, dtype=torch.float64)
    own, first, second = ((torch.tensor(one, dtype=torch.float64) / 3).softmax(-1) for one in (S, T, THIRD))
    mixed = [own, first, second] if itself else [first, second]
    target = torch.stack([share * one for share, one in zip(alpha, mixed, strict=True)]).sum(0)
    term = float(9 * (target * (target.log() - own.log())).sum())
    assert loss.value.item() == pytest.approx(float(-z.log_softmax(-1)[0]) + 0.5 * term, abs=1e-7)
    assert loss.stats["train/distill_loss"].item() == pytest.approx(term, abs=1e-7)
    plain = [torch.tensor(one, dtype=torch.float64).softmax(-1)[0] for one in ([S] if itself else []) + [T, THIRD]]
    on_label = sum(share * float(one) for share, one in zip(alpha, plain, strict=True))
    assert loss.stats["distill/teacher_off_label"].item() == pytest.approx(1 - on_label, abs=1e-7)
    assert loss.stats["distill/num_attended"].item() == pytest.approx(attended)
    assert loss.stats.get("distill/own_attention", torch.tensor(-1.0)).item() == pytest.approx(0.2 if itself else -1)
    listener = cast(Fixed, step.learner["attention"])
    assert listener.shown == shown
    loss.value.backward()
    # The student is detached in the target: T (softmax(z / T) - target) is all that pulls its logits.
    of_labels = z.softmax(-1) - torch.tensor([1.0, 0, 0])
    grad = cast(Tensor, cast(Says, step.learner["net"]).taps["logits"].grad)
    assert_close(grad[0], of_labels + 0.5 * 3 * (own - target), atol=1e-7, rtol=0)
    # d/d alpha_b of sum t (log t - log q) is sum_c q_bc (log t_c - log q_c) + 1.
    of_alpha = [0.5 * 9 * (float((q * (target.log() - own.log())).sum()) + 1) for q in mixed]
    assert cast(Tensor, listener.alpha.grad)[0].tolist() == pytest.approx(of_alpha, abs=1e-6)
    assert all(tap.grad is None for peer in peers for tap in peer.values())


def test_while_nobody_is_heard_the_loss_is_that_of_the_labels() -> None:
    (update,) = phase_of().updates
    step = step_of({"peers": []}, net=Says(logits=S, features=[4.0]), attention=Fixed())
    loss = update.loss(step)
    assert loss.value.item() == F.cross_entropy(torch.tensor([S]).double(), torch.tensor([0])).item(), "to the bit"
    loss.value.backward()
    assert cast(Fixed, step.learner["attention"]).alpha.grad is None


def plain(spec: JobSpec, burn_in: int, weight_decay: float) -> list[dict[str, Tensor]]:
    """Three networks that listen to each other's fresh predictions, in plain PyTorch."""
    recipe = open_recipe(spec)
    nets, listeners, optimizers, late = [], [], [], []
    for index in range(3):
        seed_everything(spec.seed, index, "train", "init")
        nets.append(recipe.build_model())
        listeners.append([nn.Linear(32, 4, bias=False), nn.Linear(32, 4, bias=False)])
        weights = [one.weight for one in listeners[-1]]
        optimizers.append(torch.optim.SGD(nets[-1].parameters(), 0.05, momentum=0.9, weight_decay=weight_decay))
        late.append(torch.optim.SGD(weights, 0.05, momentum=0.9, weight_decay=weight_decay))
    batches = training_batches(recipe.split("train"), spec.data, Replica(0, 3, spec.seed), spec.training.batch_size)
    for step in range(spec.training.steps):
        batch = batches(step)
        said = [net(batch.views["x"]) for net in nets]
        losses = [F.cross_entropy(one["logits"], batch.y) for one in said]
        for me in range(3 if step >= burn_in else 0):
            peers = [{name: tap.detach() for name, tap in said[j].items()} for j in range(3) if j != me]
            listens, speaks = listeners[me]
            query = listens(said[me]["features"])
            alpha = torch.stack([(query * speaks(peer["features"])).sum(-1) for peer in peers], -1).softmax(-1)
            first, second = ((peer["logits"] / 2).softmax(-1) for peer in peers)
            target = alpha[:, :1] * first + alpha[:, 1:] * second
            log_student = (said[me]["logits"] / 2).log_softmax(-1)
            losses[me] = losses[me] + 0.7 * 4 * (target * (target.log() - log_student)).sum(-1).mean()
        for loss, *both in zip(losses, optimizers, late, strict=True):
            for optimizer in both:
                optimizer.zero_grad()
            loss.backward()
        for optimizer in (*optimizers, *(late if step >= burn_in else ())):
            optimizer.step()
    return [{name: p.detach() for name, p in net.state_dict().items()} for net in nets]


def test_stale_in_lockstep_at_interval_1_is_live(tmp_path: Path) -> None:
    """After a burn-in during which neither gradient nor weight decay moves the projections."""
    spec = small_spec(
        recipe={"batch_norm": False},
        method={**TARGET, "burn_in_steps": 4, "temperature": 2.0, "weight": 0.7},
        exchange={"interval_steps": 1},
        replicas={"count": 3},
        data={"kind": "same_order"},
        training={
            "schedule": {"kind": "constant"},
            "optimizer": {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.05},
        },
    )
    run = new_run(tmp_path, spec)
    run_in_turns(run)
    for index, expected in enumerate(plain(spec, 4, 0.05)):
        found = final_weights(run, index)
        for name, value in expected.items():
            assert_close(found[name], value, atol=1e-6, rtol=0)


WIDER = [{"kind": "digits", "width": width, "train_size": 200} for width in (4, 6, 4)]
ONE_EACH = {"topology": {"kind": "explicit", "teachers": [[1], [2], []]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": {"target": {"kind": "attention"}}}, "use divergence = 'kl'"),
        ({"method": TARGET, "replicas": {"count": 2}}, "lets no replica hear two"),
        ({"method": TARGET, "replicas": {"count": 5}}, "lets no replica hear two"),
        ({"method": TARGET, "exchange": {"topology": {"kind": "ring"}}}, "lets no replica hear two"),
        ({"method": TARGET, "exchange": ONE_EACH}, "lets no replica hear two"),
        ({"method": {**TARGET, "harm_guard": True}}, "leave one of them out"),
        ({"method": TARGET, "exchange": {"currency": {"kind": "predictions"}}}, "kind = 'weights'"),
        ({"method": TARGET, "recipes": WIDER}, "recipes.1 has a model of 48 features and recipes.0 one of 32"),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        small_spec(**merge({"replicas": {"count": 3}}, change))


def test_where_one_replica_hears_two_or_attends_to_itself_there_is_a_choice() -> None:
    two_for_one = {"topology": {"kind": "explicit", "teachers": [[1, 2], [0], []]}}
    assert small_spec(method=TARGET, replicas={"count": 3}, exchange=two_for_one)
    assert small_spec(method={**TARGET, "target": {"kind": "attention", "itself": True}}, replicas={"count": 2})


def test_a_model_that_tells_no_features_is_refused_by_name() -> None:
    class Silent(nn.Module):
        def forward(self, view: Tensor) -> Tensor:
            return view.float().flatten(1)[:, :10]

    class OfSilent:
        def __init__(self, recipe: Recipe) -> None:
            self.recipe = recipe

        def __getattr__(self, name: str) -> Any:
            return Silent if name == "build_model" else getattr(self.recipe, name)

    with pytest.raises(ValueError, match="let each answer them"):
        phase_of(cast(Recipe, OfSilent(open_recipe(small_spec()))))
