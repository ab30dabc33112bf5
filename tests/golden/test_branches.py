"""Branches behind common stages: they say what the recipe's model says, and hold nothing that they do not use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from codistill.batch import as_outputs
from codistill.recipes import open_recipe
from codistill.surgery.branches import Branches, grown, of_branch, of_each
from codistill.surgery.stages import last_stage
from tests.datasets import synthetic_datasets
from tests.support import small_spec

MODELS: Mapping[str, tuple[dict[str, Any], int]] = {
    "digits": ({"kind": "digits", "width": 4}, 1),
    "resnet": ({"kind": "images", "model": {"kind": "resnet", "width": 4}}, 2),
    "mlp": ({"kind": "images", "model": {"kind": "mlp", "width": 8, "layers": 3}}, 1),
    "transformer": ({"kind": "text", "width": 16, "layers": 2, "heads": 2, "context": 16}, 1),
    "table": ({"kind": "tabular", "width": 8, "layers": 2}, 1),
    "apart": ({"kind": "tabular", "width": 8, "layers": 2}, 0),
}


@pytest.mark.parametrize("name", MODELS)
def test_each_branch_says_what_the_model_does_that_it_is_a_part_of(
    name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic_datasets(tmp_path)
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path))
    settings, shared = MODELS[name]
    recipe = open_recipe(small_spec(recipe=settings))
    example = recipe.example(3)
    torch.manual_seed(0)
    made: list[nn.Module] = []
    whole: list[dict[str, torch.Tensor]] = []

    def build() -> nn.Module:
        made.append(recipe.build_model().eval())
        whole.append({key: value.clone() for key, value in made[-1].state_dict().items()})
        return made[-1]

    branches = grown(build, example, branches=3, shared=shared).eval()
    said = branches(example.views["x"])
    first = as_outputs(made[0](example.views["x"]))
    for tap in ("logits", "features"):
        assert_close(of_branch(said, 0)[tap], first[tap], rtol=0, atol=0)
        assert [tuple(one.shape) for one in of_each(said, tap)] == [tuple(first[tap].shape)] * 3
    assert set(branches.nets[0].state_dict()) == set(whole[0]), "the first is the recipe's model"
    # Branch 2 is the first model up to the cut, and its own from there.
    own = set(branches.nets[2].state_dict())
    spliced = recipe.build_model().eval()
    spliced.load_state_dict({key: whole[2 if key in own else 0][key] for key in whole[0]})
    if name != "transformer":  # whose embeddings are its head's as well
        assert_close(of_branch(said, 2)["logits"], as_outputs(spliced(example.views["x"]))["logits"])
    # Nothing is there that no loss reaches, and what the stages in common need is there once.
    torch.stack([logits.sum() for logits in of_each(said, "logits")]).sum().backward()
    assert all(parameter.grad is not None for parameter in branches.parameters())
    assert (own < set(whole[0])) == bool(shared)


def test_what_the_others_keep_is_counted_by_hand() -> None:
    recipe = open_recipe(small_spec(recipe={"kind": "digits", "width": 4}))
    branches = grown(recipe.build_model, recipe.example(2), branches=2, shared=1)
    assert sum(p.numel() for p in branches.nets[1].parameters()) == (4 * 8 * 9 + 8) + 2 * 8 + (32 * 10 + 10)
    assert not [name for name in branches.nets[1].state_dict() if name.startswith("body.1.")], "nor its statistics"


def test_tied_embeddings_stay_and_positions_go() -> None:
    settings = {"kind": "text", "width": 16, "layers": 2, "heads": 2, "context": 16}
    recipe = open_recipe(small_spec(recipe=settings))
    second = grown(recipe.build_model, recipe.example(2), branches=2, shared=1).nets[1]
    names = set(second.state_dict())
    assert "embedding.weight" in names
    assert "position.weight" not in names
    assert {name.split(".")[1] for name in names if name.startswith("blocks.")} == {"1"}


def test_the_trunk_is_seen_once_by_its_normalisation() -> None:
    recipe = open_recipe(small_spec(recipe={"kind": "digits", "width": 4, "batch_norm": True}))
    branches: Branches = grown(recipe.build_model, recipe.example(2), branches=3, shared=1).train()
    branches(torch.rand(4, 1, 8, 8))
    assert branches.nets[0].state_dict()["body.1.num_batches_tracked"] == 1


def test_the_last_of_eleven_stages_is_not_the_one_that_comes_last_by_name() -> None:
    assert last_stage(["logits", *(f"stage{number}" for number in range(11))]) == "stage10"
