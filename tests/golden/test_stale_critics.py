"""Critics of stale peers' feature maps: their numbers, whom each update reaches, and a loop written out here."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from codistill.data.loader import training_batches
from codistill.describe import describe
from codistill.methods import plan
from codistill.methods.stale_critics import refuse_other_places
from codistill.phase import Artifacts, Phase, Replica, Step
from codistill.randomness import seed_everything
from codistill.recipes import open_recipe
from codistill.spec import JobSpec
from codistill.spec_errors import SpecError
from codistill.surgery.stages import Staged
from tests.golden.said import step_of as step_with
from tests.support import final_weights, fingerprint, merge, new_run, run_in_turns, small_spec

AFD = {"temperature": 2.0, "divergence": "kl", "critics": {"learning_rate": 1e-3, "weight_decay": 0.5, "channels": 4}}


def phase_of(**method: Any) -> Phase:
    spec = small_spec(method={**AFD, **method})
    (phase,) = plan(spec, open_recipe(spec), Replica(0, 2, 0))
    return phase


def step_of(phase: Phase, peers: int) -> Step:
    torch.manual_seed(0)
    learner, batch = phase.learner(Artifacts()).train(), phase.batches(Artifacts())(0)
    others = [phase.learner(Artifacts())["net"].eval() for _ in range(peers)]
    with torch.no_grad():
        said = [other(batch.views["x"]) for other in others]
    return Step(3, batch, learner, dict(learner.items()), {"peers": said}, {})


class Scores(nn.Module):
    """A critic that says what the first channel of features is."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        return features[:, 0] + self.asked


class Shows(nn.Module):
    """A network of these features, of one sample."""

    def __init__(self, *features: float) -> None:
        super().__init__()
        self.features = nn.Parameter(torch.tensor([features]))

    def forward(self, view: Tensor) -> Mapping[str, Tensor]:
        return {"exhibit": 1 * self.features, "logits": self.features}


@pytest.mark.parametrize(
    ("peers", "own", "critic_loss", "feature_loss"),
    [
        ([0.5], 0.5, 0.5, 0.25),
        ([1.0, 1.0], 0.0, 0.0, 1.0),
        ([0.9, 0.4], 0.3, (0.01 + 0.36) / 2 + 0.09, 0.49),
    ],
    ids=["cannot tell", "perfect", "two peers are each half of what is real"],
)
def test_least_squares_over_all_peers_present(
    peers: list[float], own: float, critic_loss: float, feature_loss: float
) -> None:
    _, features, critic = phase_of().updates
    said = [{"exhibit": torch.tensor([[score]])} for score in peers]
    step = step_with({"peers": said}, net=Shows(own), critic=Scores())
    fooled, judged = features.loss(step), critic.loss(step)
    assert (fooled.value.item(), judged.value.item()) == pytest.approx((feature_loss, critic_loss))
    assert fooled.stats["train/feature_loss"].item() == pytest.approx(feature_loss)
    assert judged.stats["train/critic_loss"].item() == pytest.approx(critic_loss)
    judged.value.backward()
    assert cast(Shows, step.learner["net"]).features.grad is None, "what the critic sees is detached"


def test_while_nobody_is_heard_there_is_nothing_for_critics_to_do() -> None:
    phase = phase_of()
    for update in phase.updates[1:]:
        loss = update.loss(step_of(phase, peers=0))
        assert not loss.value.requires_grad
        assert (loss.value.item(), loss.stats) == (0, {})


def test_each_update_reaches_its_own_and_no_more() -> None:
    phase = phase_of()
    reached = []
    for update in phase.updates:
        step = step_of(phase, peers=1)
        buffers = {name: buffer.clone() for name, buffer in step.learner.named_buffers()}
        loss = update.loss(step)
        loss.value.backward()
        with_gradient = {name: p.grad for name, p in step.learner.named_parameters() if p.grad is not None}
        trained = {name for group in update.trains for name in phase.groups[group].parameters(step.learner)}
        assert trained <= with_gradient.keys()
        reached.append(set(with_gradient))
        if len(reached) > 1:
            for name, buffer in step.learner.named_buffers():
                assert torch.equal(buffer, buffers[name]), "a second forward leaves no trace"
    predictions, features, critic = reached
    assert {name.split(".")[1] for name in predictions} == {"net"}, "the transition learns from critics alone"
    assert {name.split(".")[0] for name in critic} == {"critic"}
    assert not any(name.startswith("net.net.head") for name in features), "the classifier comes after the feature maps"
    of_features = phase.groups["features"].parameters(phase.learner(Artifacts()))
    assert {"net.net.body.0.weight", "net.transition.map.weight"} <= of_features.keys()


class Net(nn.Module):
    """A network with transition and critic, by hand."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.transition = net, nn.Conv2d(8, 4, 1)
        self.look, self.judge = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 1)

    def maps(self, view: Tensor) -> Tensor:
        staged = cast(Staged, self.net)
        first, second = staged.stages()
        return self.transition(second(first(staged.enter(view))))

    def critic(self, maps: Tensor) -> Tensor:
        return torch.sigmoid(self.judge(F.leaky_relu(self.look(maps), 0.2).mean((2, 3)))).squeeze(1)


def plain(spec: JobSpec, burn_in: int) -> list[dict[str, Tensor]]:
    """Two networks and their critics, each against the other as it was before the step, in plain PyTorch."""
    recipe = open_recipe(spec)
    nets, by_labels, fools, judges = [], [], [], []
    for index in range(2):
        seed_everything(spec.seed, index, "train", "init")
        nets.append(Net(recipe.build_model()))
        own = nets[-1]
        before_maps = [p for name, p in own.net.named_parameters() if name.split(".")[1] in ("0", "4")]
        by_labels.append(torch.optim.SGD(own.net.parameters(), 0.05, momentum=0.9, weight_decay=1e-4))
        fools.append(torch.optim.AdamW([*before_maps, *own.transition.parameters()], 1e-3, weight_decay=0.5))
        judges.append(torch.optim.AdamW([*own.look.parameters(), *own.judge.parameters()], 1e-3, weight_decay=0.5))
    batches = training_batches(recipe.split("train"), spec.data, Replica(0, 2, spec.seed), spec.training.batch_size)
    for step in range(spec.training.steps):
        batch, before = batches(step), copy.deepcopy(nets)
        view = batch.views["x"]
        for me in range(2):
            own, peer = nets[me], before[1 - me]
            logits = own.net(view)["logits"]
            loss = F.cross_entropy(logits, batch.y)
            if step >= burn_in:
                soft = (peer.net(view)["logits"] / 2).softmax(-1).detach()
                loss = loss + 0.7 * 4 * F.kl_div((logits / 2).log_softmax(-1), soft, reduction="batchmean")
            moved(by_labels[me], loss)
            if step >= burn_in:
                moved(fools[me], (1 - own.critic(own.maps(view))).square().mean())
                real, made_up = peer.maps(view).detach(), own.maps(view).detach()
                moved(judges[me], (1 - own.critic(real)).square().mean() + own.critic(made_up).square().mean())
    return [{name: p.detach() for name, p in one.net.state_dict().items()} for one in nets]


def moved(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


LOCKSTEP: dict[str, Any] = {
    "recipe": {"batch_norm": False},
    "method": {**AFD, "burn_in_steps": 4, "weight": 0.7},
    "exchange": {"interval_steps": 1},
    "data": {"kind": "same_order"},
    "training": {"schedule": {"kind": "constant"}},
}


def test_in_lockstep_at_interval_1_peers_are_as_they_were_before_the_step(tmp_path: Path) -> None:
    spec = small_spec(**LOCKSTEP)
    run = new_run(tmp_path, spec)
    results = run_in_turns(run)
    for index, expected in enumerate(plain(spec, 4)):
        found = final_weights(run, index)
        for name, value in expected.items():
            assert_close(found[name], value, atol=1e-6, rtol=0)
    # What is published is the model and the transition, 8 to 4 channels, and no critic: versions 4 to 11.
    sent = sum(value.nbytes for value in final_weights(run, 0).values()) + 4 * (8 * 4 + 4)
    assert describe(spec)["bytes_per_snapshot"] == sent
    assert results[0]["bytes_sent"] == 8 * sent


MIXED = [{"kind": "digits", "width": width, "train_size": 200} for width in (4, 6)]


def test_without_critics_to_hear_it_is_codistillation_or_plain_training(tmp_path: Path) -> None:
    """Whatever weight decay would do: a rate of 0 leaves predictions alone, and who hears nobody trains alone. The one
    who hears is narrower than whom it hears."""
    one_way = {"topology": {"kind": "explicit", "teachers": [[1], []]}}
    still = {**AFD["critics"], "learning_rate": 0.0}
    specs = {
        "critics": small_spec(method=AFD, exchange=one_way, recipes=MIXED),
        "still": small_spec(method={**AFD, "critics": still}, exchange=one_way, recipes=MIXED),
        "predictions": small_spec(method={**AFD, "critics": None}, exchange=one_way, recipes=MIXED),
        "solo": small_spec(method={"kind": "solo"}, recipes=MIXED),
    }
    ended: dict[str, list[str]] = {}
    for name, spec in specs.items():
        run = new_run(tmp_path, spec, name)
        run_in_turns(run)
        ended[name] = [fingerprint(final_weights(run, index)) for index in range(2)]
    assert ended["still"] == ended["predictions"]
    assert ended["critics"][0] != ended["predictions"][0]
    assert {each[1] for each in ended.values()} == {ended["solo"][1]}


UNLIKE = [{"kind": "images", "model": {"kind": kind}} for kind in ("cnn", "mlp")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exchange": {"currency": {"kind": "predictions"}}}, "predictions have none; use exchange.currency.kind"),
        ({"recipe": UNLIKE[0], "recipes": UNLIKE}, "recipes.1 .* gives vectors and recipes.0 one that gives maps"),
        ({"method": {"critics": {"channels": 0}}}, "method.critics.channels"),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        small_spec(**merge({"method": AFD}, change))


def test_maps_of_other_places_are_refused_once_models_are_opened() -> None:
    spec = small_spec(method=AFD, recipes=MIXED)
    refuse_other_places(spec, 1, (8, 2, 2))
    for other in ((8, 3, 2), (8, 2), (8,)):
        with pytest.raises(ValueError, match=r"gives \[12, 2, 2\] and that of another replica"):
            refuse_other_places(spec, 1, other)
