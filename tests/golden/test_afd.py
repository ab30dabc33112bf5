"""Online adversarial feature map distillation: its numbers, whom each update reaches, and what is left at rate 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from codistill.methods import afd, plan
from codistill.phase import Artifacts, Phase, Replica, Step
from codistill.recipes import open_recipe
from codistill.spec import JobSpec
from tests.support import final_weights, fingerprint, new_run, run_in_turns, small_spec


def spec_of(**method: Any) -> JobSpec:
    return small_spec(method={"kind": "afd", "channels": 4, **method}, replicas={"count": 1})


def phase_of(**method: Any) -> Phase:
    spec = spec_of(**method)
    (phase,) = plan(spec, open_recipe(spec), Replica(0, 1, 0))
    return phase


def step_of(phase: Phase) -> Step:
    torch.manual_seed(0)
    learner = phase.learner(Artifacts()).train()
    batch = phase.batches(Artifacts())(0)
    return Step(0, batch, learner, dict(learner.items()), {}, {})


class Scores(nn.Module):
    """A critic that says `real` of the first half of what it is shown and `own` of the second; or `own` of all."""

    def __init__(self, real: float, own: float, size: int) -> None:
        super().__init__()
        self.real, self.own, self.size = real, own, size

    def forward(self, features: Tensor) -> Tensor:
        own = torch.full((self.size,), self.own) + 0 * features.sum()
        return own if len(features) == self.size else torch.cat([torch.full((self.size,), self.real), own])


@pytest.mark.parametrize(
    ("real", "own", "critic_loss", "feature_loss"),
    [(0.5, 0.5, 0.5, 0.25), (1.0, 0.0, 0.0, 1.0), (1.0, 1.0, 1.0, 0.0)],
    ids=["cannot tell", "perfect", "fooled"],
)
def test_least_squares_of_critics_and_of_those_who_fool_them(
    real: float, own: float, critic_loss: float, feature_loss: float
) -> None:
    phase = phase_of()
    step = step_of(phase)
    for k in range(2):
        step.parts[f"critic{k}"] = Scores(real, own, len(step.batch))  # pyright: ignore[reportIndexIssue]
    _, features, critics = phase.updates
    assert critics.loss(step).stats["train/critic_loss"].item() == pytest.approx(critic_loss)
    assert features.loss(step).stats["train/feature_loss"].item() == pytest.approx(feature_loss)


def test_each_update_reaches_its_own_and_no_more() -> None:
    phase = phase_of()
    reached = []
    for update in phase.updates:
        step = step_of(phase)
        update.loss(step).value.backward()
        with_gradient = {name for name, p in step.learner.named_parameters() if p.grad is not None}
        trained = {name for group in update.trains for name in phase.groups[group].parameters(step.learner)}
        assert trained <= with_gradient
        reached.append(with_gradient)
    logits, features, critics = reached
    assert {name.split(".")[0] for name in logits} == {"net0", "net1"}
    assert {name.split(".")[0] for name in critics} == {"critic0", "critic1"}
    assert not any(".net.head." in name for name in features), "the classifier comes after the feature maps"
    assert "net0.net.body.0.weight" in phase.groups["features"].parameters(step_of(phase).learner)


def test_three_networks_learn_in_a_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Network k from k - 1: the critic of k is shown those two, real ones first."""
    phase = phase_of(nets=3)
    step = step_of(phase)
    maps = [torch.full((1,), float(k)) for k in range(3)]
    monkeypatch.setattr(afd, "shown_again", lambda step, k, tap: maps[k])
    seen = []
    monkeypatch.setattr(
        afd, "criticism", lambda critic, real, own: seen.append((real.item(), own.item())) or real.mean()
    )
    phase.updates[2].loss(step)
    assert seen == [(2.0, 0.0), (0.0, 1.0), (1.0, 2.0)]


def test_at_adversarial_rate_0_it_is_mutual_learning_at_that_temperature(tmp_path: Path) -> None:
    without = new_run(tmp_path, spec_of(adversarial_learning_rate=0.0, temperature=3.0, weight=0.5), "afd")
    mutual = small_spec(
        method={"kind": "deep_mutual_learning", "temperature": 3.0, "weight": 0.5}, replicas={"count": 1}
    )
    plain, with_critics = new_run(tmp_path, mutual, "dml"), new_run(tmp_path, spec_of(weight=0.5), "on")
    for run in (without, plain, with_critics):
        run_in_turns(run)
    assert fingerprint(final_weights(without, 0)) == fingerprint(final_weights(plain, 0))
    assert fingerprint(final_weights(with_critics, 0)) != fingerprint(final_weights(plain, 0))


def test_critics_bring_one_cloud_of_features_to_the_other_without_pairing_them() -> None:
    """Two networks that are one linear map each, on noise: the first's features take the mean and the spread of the
    second's, though the second's come in another order each time."""
    torch.manual_seed(1)
    own, critic = (
        nn.Linear(2, 2),
        nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid(), nn.Flatten(0)),
    )
    fools, judges = torch.optim.Adam(own.parameters(), 5e-3), torch.optim.Adam(critic.parameters(), 5e-3)
    mean, spread = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.5])
    for _ in range(1500):
        real = mean + spread * torch.randn(64, 2)
        made = own(torch.randn(64, 2))
        fools.zero_grad()
        (1 - critic(made)).square().mean().backward()
        fools.step()
        judges.zero_grad()
        afd.criticism(critic, real, made.detach()).backward()
        judges.step()
    with torch.no_grad():
        ended = own(torch.randn(2000, 2))
    torch.testing.assert_close(ended.mean(0), mean, atol=0.3, rtol=0)
    torch.testing.assert_close(ended.std(0), spread, atol=0.4, rtol=0)
