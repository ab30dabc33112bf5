"""Networks of different sizes in one learner: what each of them learns, what is left of them, and what they take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from codistill.checkpoint import load
from codistill.data.loader import training_batches
from codistill.describe import describe
from codistill.phase import Replica
from codistill.price import likeness
from codistill.randomness import seed_everything
from codistill.recipes import open_recipe, recipe_of
from codistill.run_dir import read_json
from codistill.spec import JobSpec
from codistill.spec_errors import SpecError
from tests.support import final_weights, new_run, run_in_turns, small_spec

WIDTHS = (4, 8)
TEMPERATURE, WEIGHT = 2.0, 0.5


def digits(width: int, **more: Any) -> dict[str, Any]:
    return {"kind": "digits", "width": width, "train_size": 200, "batch_norm": False, **more}


def spec_of(kind: str, **method: Any) -> JobSpec:
    return small_spec(
        recipe=digits(WIDTHS[0]),
        method={"kind": kind, "others": [digits(WIDTHS[1])], "temperature": TEMPERATURE, "weight": WEIGHT, **method},
        training={"schedule": {"kind": "constant"}},
        replicas={"count": 1},
    )


def of_each_other(said: list[Tensor], labels: Tensor) -> list[Tensor]:
    return [F.softmax(logits.detach() / TEMPERATURE, -1) for logits in said[::-1]]


def least_above_the_label(said: list[Tensor], labels: Tensor) -> list[Tensor]:
    above = [logits.detach() - logits.detach()[range(len(labels)), labels][:, None] for logits in said]
    return [F.softmax(torch.minimum(*above) / TEMPERATURE, -1)] * 2


@pytest.mark.parametrize(
    ("kind", "targets"), [("kdcl", least_above_the_label), ("deep_mutual_learning", of_each_other)]
)
def test_a_small_and_a_large_net_learn_as_in_plain_pytorch(tmp_path: Path, kind: str, targets: Any) -> None:
    spec = spec_of(kind)
    run = new_run(tmp_path, spec)
    run_in_turns(run)
    seed_everything(spec.seed, 0, "train", "init")
    recipes = [open_recipe(spec), recipe_of(spec.method.others[0])]  # pyright: ignore[reportAttributeAccessIssue]
    nets = [recipe.build_model() for recipe in recipes]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4) for net in nets]
    batches = training_batches(recipes[0].split("train"), spec.data, Replica(0, 1, spec.seed), 16)
    for step in range(spec.training.steps):
        batch = batches(step)
        said = [net(batch.views["x"])["logits"] for net in nets]
        for logits, target, optimizer in zip(said, targets(said, batch.y), optimizers, strict=True):
            pull = F.kl_div(F.log_softmax(logits / TEMPERATURE, -1), target, reduction="batchmean")
            optimizer.zero_grad()
            (F.cross_entropy(logits, batch.y) + WEIGHT * TEMPERATURE**2 * pull).backward()
            optimizer.step()
    trained = load(run.checkpoints("replica-0"), 1, 12).tensors["learner"]
    for number, net in enumerate(nets):
        for name, weights in net.named_parameters():
            assert_close(trained[f"net{number}.{name}"], weights.detach(), atol=1e-6, rtol=0)
    assert_close(final_weights(run, 0), nets[0].state_dict(), atol=1e-6, rtol=0)
    assert read_json(run.export("replica-0") / "recipe.json") == digits(WIDTHS[0])


def test_each_takes_what_its_own_model_does() -> None:
    small, large = (describe(small_spec(recipe=digits(w), method={"kind": "solo"})) for w in WIDTHS)
    both = describe(spec_of("kdcl"))
    assert both["parameters"] == small["parameters"], "of what is exported"
    trained = [one["phases"]["train"] for one in (both, small, large)]
    assert trained[0]["parameters"] == trained[1]["parameters"] + trained[2]["parameters"]
    assert trained[0]["flops_per_step"] == trained[1]["flops_per_step"] + trained[2]["flops_per_step"]


def test_a_step_with_other_networks_is_another_step() -> None:
    alike = small_spec(recipe=digits(WIDTHS[0]), method={"kind": "kdcl"}, replicas={"count": 1})
    three = small_spec(recipe=digits(WIDTHS[0]), method={"kind": "kdcl", "nets": 3}, replicas={"count": 1})
    assert len({likeness(spec) for spec in (alike, three, spec_of("kdcl"))}) == 3


def test_networks_may_differ_in_the_model_alone_and_each_is_told() -> None:
    for method, words in (
        ({"nets": 3}, r"method\.others lists 1 and method\.nets is 3.*give 2"),
        ({"others": [digits(8, train_size=100)]}, r"method\.others\.0\.train_size is not that of recipe"),
        ({"others": [{"kind": "images"}]}, r"method\.others\.0\.kind is not"),
        ({"others": [{**digits(8), "width": "8"}]}, r"method\.others\.0\.width"),
    ):
        with pytest.raises(SpecError, match=words):
            spec_of("kdcl", **method)
