"""Cheap convolutions: their weights counted by hand, and the shift as a convolution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from codistill.recipes import open_recipe
from codistill.recipes.models.images import Shift, build, convolve
from codistill.spec_errors import SpecError
from tests.datasets import write_images
from tests.support import small_spec


def images(**model: Any) -> dict[str, Any]:
    return {"kind": "images", "model": model}


@pytest.mark.parametrize(
    ("kind", "weights"),
    [("standard", 9 * 8 * 16), ("group", 9 * 8 * 16 // 4), ("depthwise", 9 * 8 + 8 * 16), ("shift", 8 * 16)],
)
def test_weights_of_a_cheap_convolution(kind: str, weights: int) -> None:
    layer = convolve(kind, 8, 16, stride=2)
    assert sum(p.numel() for p in layer.parameters()) == weights
    assert layer(torch.rand(2, 8, 7, 7)).shape == (2, 16, 4, 4)


@pytest.mark.parametrize("channels", [9, 12])
def test_a_shift_is_a_depthwise_convolution_with_one_hot_kernels(channels: int) -> None:
    maps = torch.rand(2, channels, 5, 4)
    places = torch.arange(9).repeat_interleave(torch.tensor([channels // 9 + (k < channels % 9) for k in range(9)]))
    kernels = F.one_hot(places, 9).float().view(channels, 1, 3, 3)
    assert_close(Shift()(maps), F.conv2d(maps, kernels, padding=1, groups=channels), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["standard", "group", "depthwise", "shift"])
@pytest.mark.parametrize("model", ["cnn", "resnet"])
def test_the_models_of_a_recipe_have_them_and_are_built_again_from_their_config(
    model: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path)
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path))
    recipe = open_recipe(small_spec(recipe=images(kind=model, width=4, convolution=kind)))
    plain = open_recipe(small_spec(recipe=images(kind=model, width=4)))
    net, again = recipe.build_model().eval(), build(recipe.config()).eval()
    again.load_state_dict(net.state_dict())
    view = recipe.example(2).views["x"]
    assert_close(again(view)["logits"], net(view)["logits"], rtol=0, atol=0)
    sizes = [sum(p.numel() for p in one.parameters()) for one in (net, plain.build_model())]
    assert (sizes[0] < sizes[1]) == (kind != "standard")
    old = "body.4.weight" if model == "cnn" else "body.3.first.weight"
    assert (old in net.state_dict()) == (kind in ("standard", "group")), "weights of before have the names of before"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"kind": "cnn", "groups": 2}, "of convolution 'group', this is 'standard'; leave them out"),
        ({"kind": "resnet", "width": 6, "convolution": "group"}, r"width \(6\) must be a multiple of .*groups \(4\)"),
    ],
)
def test_groups_that_do_not_fit_are_refused(model: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        small_spec(recipe=images(**model))
