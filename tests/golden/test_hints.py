"""Hints: the loss on chosen features, what moves in which stage, and features of other forms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from codistill.checkpoint import load_newest
from codistill.data.home import DataError
from codistill.describe import describe
from codistill.methods import plan
from codistill.phase import Artifacts, Phase, Replica
from codistill.randomness import seed_everything
from codistill.recipes import open_recipe
from codistill.spec import JobSpec
from codistill.spec_errors import SpecError
from codistill.surgery.hints import at_common_places
from tests.datasets import write_images
from tests.golden.said import S, Says, T, step_of
from tests.support import final_weights, new_run, run_in_turns, small_spec

CE_S, T_TO_S = 0.4076060, 0.0395369
ONE_STAGE = {"kind": "one_stage"}
IMAGES = {"kind": "images", "model": {"kind": "cnn", "width": 4}}


def spec_of(recipe: Mapping[str, Any] | None = None, **method: Any) -> JobSpec:
    return small_spec(recipe=recipe or {"kind": "digits"}, method={"kind": "hints", **method}, replicas={"count": 1})


def phases_of(**method: Any) -> list[Phase]:
    spec = spec_of(**method)
    return list(plan(spec, open_recipe(spec), Replica(0, 1, 0)))


def features(*values: float) -> dict[str, torch.Tensor]:
    return {"stage0": torch.tensor([values]).double(), "logits": torch.tensor([T]).double()}


def test_equal_features_give_no_hint_and_others_their_mean_squared_distance() -> None:
    (update,) = phases_of(scheme={**ONE_STAGE, "weight": 100.0})[-1].updates
    for given, distance in (((1.0, 2.0, 3.0), 0.0), ((1.0, 4.0, 3.0), 4 / 3)):
        step = step_of(
            {"teacher": [features(*given)]}, net=Says(logits=S, stage0=[1.0, 2.0, 3.0]), regressor=nn.Identity()
        )
        loss = update.loss(step)
        assert loss.value.item() == pytest.approx(CE_S + 100 * distance, rel=1e-6)
        assert loss.stats["train/hint_loss"].item() == pytest.approx(distance)
        loss.value.backward()
        gradient = step.learner["net"].taps["stage0"].grad
        assert_close(gradient, 100 * 2 / 3 * (torch.tensor([[1.0, 2.0, 3.0]]).double() - features(*given)["stage0"]))


def test_the_second_stage_is_knowledge_distillation_of_falling_weight() -> None:
    (update,) = phases_of(scheme={"kind": "two_stage", "temperature": 1.0})[-1].updates
    step = step_of({"teacher": [features(0.0)]}, net=Says(logits=S))
    for index, weight in ((0, 0.44), (6, 0.275), (12, 0.11)):
        object.__setattr__(step, "index", index)
        assert update.loss(step).value.item() == pytest.approx(CE_S + weight * T_TO_S, abs=1e-6)


def test_the_first_stage_moves_the_student_up_to_the_hint_and_the_second_goes_on_from_there(tmp_path: Path) -> None:
    recipe = {"batch_norm": True, "width": 4}
    scheme = {"kind": "two_stage", "hint_steps": 12}
    spec = spec_of({"kind": "digits", **recipe}, teacher={"kind": "trained_first", "steps": 3}, scheme=scheme)
    run = new_run(tmp_path, spec)
    (result,) = run_in_turns(run).values()
    found = load_newest(run.checkpoints("replica-0"), lambda name: True)
    assert found is not None
    assert result["steps"] == found.step == 3 + 12 + 12 == spec.total_steps
    ended = {name.removeprefix("net.net."): held for name, held in found.tensors["finished.hint"].items()}
    seed_everything(spec.seed, 0, "hint", "init")
    begun = open_recipe(spec).build_model().state_dict()
    moved = {name for name in begun if not torch.equal(ended[name], begun[name])}
    first_convolution = {"0.weight", "0.bias", "1.weight", "1.bias"}
    statistics = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert moved == {f"body.{name}" for name in first_convolution | statistics}
    *_, hint, train = plan(spec, open_recipe(spec), Replica(0, 1, 0))
    stage = hint.learner(Artifacts())
    assert_close(
        train.learner(Artifacts({"hint": stage}))["net"].state_dict(), stage["net"].get_submodule("net").state_dict()
    )


def test_maps_of_other_sizes_are_averaged_down_to_the_smaller() -> None:
    large, small = torch.arange(16.0).reshape(1, 1, 4, 4), torch.ones(1, 1, 2, 4)
    one, other = at_common_places(large, small)
    assert_close(one, torch.tensor([[[[2.0, 3, 4, 5], [10, 11, 12, 13]]]]))
    assert torch.equal(other, small)
    assert torch.equal(at_common_places(small, large)[1], one)
    vectors = torch.ones(2, 5)
    assert at_common_places(vectors, vectors)[0] is vectors


def test_stages_of_other_models_fit_or_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path)
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path))
    resnet = {"kind": "images", "model": {"kind": "resnet", "width": 4}}
    first = {"kind": "trained_first", "recipe": resnet}
    facts = describe(spec_of(IMAGES, teacher=first, teacher_stage=2))  # 8 channels of 14 x 14 after 16 of 7 x 7
    regressor = 4 * 16 + 16
    assert facts["phases"]["hint"]["parameters"] == (4 * 9 + 4) + 2 * 4 + regressor
    assert facts["phases"]["train"]["parameters"] == facts["parameters"]
    mlp = {"kind": "trained_first", "recipe": {"kind": "images", "model": {"kind": "mlp", "width": 8}}}
    with pytest.raises(ValueError, match=r"student's stage gives \[4, 14, 14\] and the teacher's \[8\]"):
        describe(spec_of(IMAGES, teacher=mlp))
    with pytest.raises(ValueError, match=r"method\.stage is 2, and the model has stages 0 to 1"):
        describe(spec_of(stage=2))
    with pytest.raises(ValueError, match=r"method\.teacher_stage is 7"):
        describe(spec_of(teacher_stage=7))
    with pytest.raises(SpecError, match="leave teacher_recipe out"):
        spec_of(teacher_recipe={"kind": "digits"})
    with pytest.raises(ValueError, match=r"method.teacher_recipe: the teacher knows 256 classes"):
        describe(spec_of(teacher={"kind": "job", "job": "a"}, teacher_recipe={"kind": "text"}))


def test_a_teacher_out_of_an_export_is_what_it_was_taken_for(tmp_path: Path) -> None:
    wide = {"kind": "digits", "width": 8, "train_size": 200}
    first = new_run(tmp_path, small_spec(method={"kind": "solo"}, recipe=wide, replicas={"count": 1}), "first")
    run_in_turns(first)
    teacher, scheme = {"kind": "job", "job": "first"}, {"kind": "one_stage", "weight": 1.0}
    taken = spec_of(teacher=teacher, teacher_recipe=wide, scheme=scheme)
    assert describe(taken)["phases"]["train"]["parameters"] == describe(taken)["parameters"] + 4 * 8 + 8
    run = new_run(tmp_path, taken, "student")
    run_in_turns(run)
    assert final_weights(run, 0)["head.weight"].shape == (10, 32)
    with pytest.raises(
        DataError, match=r"gives \[8, 4, 4\] after stage 0, .* of \[4, 4, 4\]; set method\.teacher_recipe"
    ):
        run_in_turns(new_run(tmp_path, spec_of(teacher=teacher, scheme=scheme), "misled"))
