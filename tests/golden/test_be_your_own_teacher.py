"""Be your own teacher: its loss on chosen logits, whom it reaches, and exits on every staged model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from codistill.methods import plan
from codistill.phase import Artifacts, Phase, Replica
from codistill.randomness import seed_everything
from codistill.recipes import open_recipe, recipe_of
from codistill.spec import Tabular
from codistill.surgery.stages import Taps, cut
from tests.datasets import synthetic_datasets
from tests.golden.said import Says, step_of
from tests.support import small_spec

SHALLOW, DEEP = [2.0, 1.0, 0.0], [3.0, 0.0, 1.0]


def phase_of(recipe: Mapping[str, Any] | None = None, **method: Any) -> Phase:
    spec = small_spec(
        method={"kind": "be_your_own_teacher", **method}, recipe=recipe or {"kind": "digits"}, replicas={"count": 1}
    )
    (phase,) = plan(spec, open_recipe(spec), Replica(0, 1, 0))
    return phase


def said(**taps: Any) -> Says:
    return Says(
        **{"logits": DEEP, "exit0": SHALLOW, "features": [0, -2, -1, -3], "exit0_features": [1, -1, 2, -3], **taps}
    )


def test_the_loss_of_the_journals_code() -> None:
    """Theirs is 0.7 CE + 0.3 CE(soft), without T^2 and without features; ours is a KL, with T^2."""
    (update,) = phase_of(label_weight=0.7, weight=0.3 / 9, temperature=3.0, feature_weight=0.0).updates
    deep = (torch.tensor(DEEP, dtype=torch.float64) / 3).log_softmax(-1)
    entropy = -(deep.exp() * deep).sum().item()
    assert update.loss(step_of(net=said())).value.item() + 0.3 * entropy == pytest.approx(0.769900, abs=1e-6)


def test_features_are_pulled_by_their_mean_squared_distance() -> None:
    weights = {"label_weight": 0.0, "weight": 0.0}
    (off,), (on,) = phase_of(**weights, feature_weight=0.0).updates, phase_of(**weights, feature_weight=2.0).updates
    difference = on.loss(step_of(net=said())).value - off.loss(step_of(net=said())).value
    assert difference.item() == pytest.approx(2.0 * (1 + 1 + 9 + 0) / 4)


def test_the_last_exit_learns_from_the_labels_alone() -> None:
    gradients = []
    for weights in ({}, {"label_weight": 0.0, "weight": 0.0, "feature_weight": 0.0}):
        step = step_of(net=said())
        phase_of(**weights).updates[0].loss(step).value.backward()
        taps = step.learner["net"].taps
        gradients.append(taps["logits"].grad)
        assert taps["features"].grad is None
        assert bool(taps["exit0"].grad.any()) == bool(taps["exit0_features"].grad.any()) == (not weights)
    assert_close(gradients[0], gradients[1])


MODELS = {
    "cnn": {"kind": "images", "model": {"kind": "cnn", "width": 4}},
    "resnet": {"kind": "images", "model": {"kind": "resnet", "width": 4, "blocks": 2}},
    "mlp": {"kind": "images", "model": {"kind": "mlp", "width": 8, "layers": 3}},
    "transformer": {"kind": "text", "width": 16, "layers": 3, "heads": 2, "context": 16},
    "table": {"kind": "tabular", "width": 8, "layers": 2},
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_ours_can_be_cut_and_says_the_same_as_before(
    name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic_datasets(tmp_path)
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path))
    phase = phase_of(MODELS[name])
    learner = phase.learner(Artifacts()).eval()
    batch = phase.batches(Artifacts())(0)
    taps = learner["net"](batch.views["x"])
    plain = phase.export(learner)(batch.views["x"])
    assert_close(taps["logits"], plain["logits"], rtol=0, atol=0)
    exits = [tap for tap in taps if tap.startswith("exit") and not tap.endswith("features")]
    assert len(exits) == {"cnn": 1, "resnet": 2, "mlp": 2, "transformer": 2, "table": 1}[name]
    for tap in exits:
        assert taps[tap].shape == plain["logits"].shape
        assert taps[f"{tap}_features"].shape == plain["features"].shape
    # Each part of the model is in the stages or after them: none is forgotten.
    seed_everything(0)
    model = Taps(open_recipe(small_spec(recipe=MODELS[name])).build_model())
    model(batch.views["x"])["logits"].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_model_of_one_stage_is_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic_datasets(tmp_path)
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="needs a model of at least 2 stages, this TableNet has 1"):
        cut(recipe_of(Tabular(layers=1)).build_model(), method="be_your_own_teacher", stages=2)
