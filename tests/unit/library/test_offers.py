"""What recipes offer and methods need: the spec accepts what a plan can be made of, and nothing else."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from codistill.methods import plan
from codistill.phase import Replica
from codistill.recipes import recipe_of
from codistill.spec import (
    AttentionTarget,
    Codistillation,
    Critics,
    FeatureFusionLearning,
    Installed,
    JobSpec,
    Method,
    Okddip,
    One,
    Recipe,
    Solo,
    offer_of,
    why_not_offered,
)
from codistill.spec_errors import SpecError
from codistill.surgery.stages import cut, shapes
from tests.datasets import synthetic_datasets
from tests.support import small_spec

RECIPES: list[dict[str, Any]] = [
    {"kind": "digits", "width": 2},
    {"kind": "images", "model": {"kind": "mlp", "width": 4}},
    {"kind": "images", "model": {"kind": "mlp", "width": 4, "layers": 3}, "flip": True},
    {"kind": "images", "model": {"kind": "cnn", "width": 2}, "shift_pixels": 1},
    {"kind": "images", "model": {"kind": "resnet", "width": 2}},
    {"kind": "text", "width": 8, "heads": 1, "layers": 1, "context": 16},
    {"kind": "tabular", "width": 4, "layers": 2},
]
KINDS: list[Method] = [choice() for choice in get_args(get_args(Method)[0])]
METHODS: list[Method] = [
    *KINDS,
    Codistillation(divergence="kl", target=AttentionTarget()),
    Codistillation(critics=Critics()),
    One(split=2),
    Okddip(split=0),
    FeatureFusionLearning(split=1),
]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic_datasets(tmp_path)
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path))


@pytest.mark.usefixtures("data")
def test_the_spec_accepts_a_method_for_a_recipe_if_and_only_if_a_plan_can_be_made() -> None:
    refused = 0
    for settings in RECIPES:
        choice = TypeAdapter[Recipe](Recipe).validate_python(settings)
        recipe, offer = recipe_of(choice), offer_of(choice)
        taps = shapes(lambda recipe=recipe: cut(recipe.build_model(), method="none"), recipe.example(2))
        assert offer.stages == sum(name.startswith("stage") for name in taps), settings
        assert offer.maps == (len(taps[f"stage{offer.stages - 1}"]) == 3), settings
        assert offer.features == taps["features"][-1], settings
        assert offer.labels_per_sample == recipe.example(1).y.numel(), settings
        for method in METHODS:
            spec = JobSpec(method=Solo()).model_copy(update={"method": method, "recipe": choice})
            problem = why_not_offered(method, choice)
            refused += problem is not None
            with nullcontext() if problem is None else pytest.raises(ValueError, match=method.kind):
                plan(spec, recipe, Replica(0, 2, 0))
    assert refused >= 3
    assert [offer_of(TypeAdapter[Recipe](Recipe).validate_python(r)).augmented for r in RECIPES[1:5]] == [
        False, True, True, False
    ]  # fmt: skip


def test_a_submitted_spec_is_refused_in_one_sentence_and_an_installed_recipe_is_asked_when_opened() -> None:
    method = {"kind": "be_your_own_teacher"}
    with pytest.raises(
        SpecError, match=r"be_your_own_teacher.*at least 2 stages.*'tabular' has 1; raise recipe\.layers"
    ):
        small_spec(method=method, recipe={"kind": "tabular", "layers": 1})
    with pytest.raises(SpecError, match=r"'one'.*at least 3 stages.*'digits' has 2; .* or lower method\.split"):
        small_spec(method={"kind": "one", "split": 2})
    assert all(why_not_offered(method, Installed(name="own")) is None for method in METHODS)
