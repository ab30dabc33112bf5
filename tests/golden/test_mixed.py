"""Replicas of different models: what each trains, hears, leaves and takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from codistill.baselines import baseline_of
from codistill.data.loader import training_batches
from codistill.describe import describe
from codistill.exported import exported_model
from codistill.peers import PeerTeachers
from codistill.phase import Replica
from codistill.price import estimate, share_without_teachers
from codistill.randomness import seed_everything
from codistill.recipes import open_recipe
from codistill.replay import replay
from codistill.run_dir import RunDir, read_json
from codistill.spec import JobSpec, OfJob
from codistill.spec_errors import SpecError, parse_spec
from codistill.study.effort import Effort, effort_of, flops_by_step
from tests.support import final_weights, new_run, run_in_turns, small_spec

ONE_WAY = {"kind": "explicit", "teachers": [[1], []]}


def digits(width: int, **more: Any) -> dict[str, Any]:
    return {"kind": "digits", "width": width, "train_size": 200, "batch_norm": False, **more}


def mixed_spec(*widths: int, **change: Any) -> JobSpec:
    recipes = [digits(width) for width in widths]
    return small_spec(**{"recipe": recipes[0], "recipes": recipes, "replicas": {"count": len(widths)}, **change})


def test_a_large_net_teaches_a_small_one_as_in_plain_pytorch(tmp_path: Path) -> None:
    spec = mixed_spec(
        4,
        8,
        method={"burn_in_steps": 0, "weight": 0.5},
        exchange={"interval_steps": 1, "topology": ONE_WAY},
        training={"schedule": {"kind": "constant"}},
    )
    run = new_run(tmp_path, spec)
    results = run_in_turns(run)
    nets: list[torch.nn.Module] = []
    for index in range(2):
        seed_everything(spec.seed, index, "train", "init")
        nets.append(open_recipe(spec.for_replica(index)).build_model())
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4) for net in nets]
    split = open_recipe(spec).split("train")
    batches = [training_batches(split, spec.data, Replica(index, 2, spec.seed), 16) for index in range(2)]
    for step in range(12):
        small, large = (batch(step) for batch in batches)
        said = nets[0](small.views["x"])["logits"]
        taught = F.softmax(nets[1](small.views["x"])["logits"], dim=-1).detach()
        losses = [
            F.cross_entropy(said, small.y) + 0.5 * F.cross_entropy(said, taught),
            F.cross_entropy(nets[1](large.views["x"])["logits"], large.y),
        ]
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for index, net in enumerate(nets):
        assert_close(final_weights(run, index), net.state_dict(), atol=1e-6, rtol=0)
    assert (results[0]["bytes_sent"], results[1]["bytes_received"]) == (12 * described(spec, 0), 0)
    assert results[0]["bytes_received"] == 12 * described(spec, 1)


def described(spec: JobSpec, replica: int) -> int:
    return describe(spec)["replicas"][replica]["bytes_per_snapshot"]


def test_each_leaves_a_model_of_its_own_which_says_what_it_is(tmp_path: Path) -> None:
    spec = mixed_spec(4, 6, controls=["solo"])
    run = new_run(tmp_path, spec)
    run_in_turns(run)
    for index, width in enumerate((4, 6)):
        place = run.export(f"replica-{index}")
        assert read_json(place / "recipe.json") == digits(width)
        assert read_json(place / "config.json")["width"] == width
        model = exported_model(OfJob(job="job", replica=index), tmp_path, open_recipe(spec))
        assert_close(model.state_dict(), final_weights(run, index))
    assert spec.for_replica(1).for_arm("solo").recipe == spec.recipes[1]


def test_who_takes_turns_is_heard_in_its_own_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three of which one teaches at a time: modules are not passed on from one to the other."""
    widths: dict[int, int] = {}

    def noting(teachers: PeerTeachers, batch: Any) -> Any:
        for held in teachers._heard:
            peer = held.header.id.replica
            widths[peer] = teachers._modules[peer].get_submodule("head").weight.shape[1] // 8
        assert len(teachers._modules) <= 1
        return outputs(teachers, batch)

    outputs = PeerTeachers.outputs
    monkeypatch.setattr(PeerTeachers, "outputs", noting)
    recipes = [digits(width) | {"batch_norm": True} for width in (4, 5, 6)]  # buffers are copied, and must fit
    turns = {"topology": {"kind": "rotating"}}
    spec = mixed_spec(4, 5, 6, recipe=recipes[0], recipes=recipes, exchange=turns, method={"burn_in_steps": 1})
    run_in_turns(new_run(tmp_path, spec))
    assert widths == {0: 4, 1: 5, 2: 6}


def test_a_run_of_several_models_can_be_replayed(tmp_path: Path) -> None:
    run = new_run(tmp_path, mixed_spec(4, 6, exchange={"mode": "async", "keep_snapshots": True}))
    run_in_turns(run)
    for index in range(2):
        verdict = replay(RunDir(tmp_path, "job"), index)
        assert verdict.first_difference is None
        assert verdict.losses_same_until == 12


def test_recipes_may_differ_in_the_model_alone() -> None:
    left_out = parse_spec({"recipes": [digits(4), digits(8)]})
    assert left_out.recipe == left_out.recipes[0]
    for change, words in (
        ({"recipes": [digits(4)]}, "recipes lists 1 and replicas.count is 2"),
        ({"recipe": digits(5)}, "recipe is not the first of recipes"),
        ({"recipes": [digits(4), digits(8, train_size=100)]}, r"recipes\.1\.train_size is not that of recipes\.0"),
        ({"recipes": [digits(4), {"kind": "images"}]}, r"recipes\.1\.kind is not"),
        ({"recipes": [digits(4), {**digits(8), "width": "8"}]}, r"recipes\.1\.width"),
        ({"method": {"kind": "local_sgd"}, "exchange": {"topology": {"kind": "all"}}}, "leave recipes out"),
    ):
        with pytest.raises(SpecError, match=words):
            mixed_spec(4, 8, **change)
    with pytest.raises(SpecError, match="recipes"):
        baseline_of(mixed_spec(4, 8), "ddp")


def test_each_takes_what_its_own_model_and_its_teachers_do() -> None:
    spec = mixed_spec(4, 8, exchange={"topology": ONE_WAY})
    facts = describe(spec)
    small, large = facts["replicas"]
    alone = [describe(small_spec(recipe=digits(width), method={"kind": "solo"})) for width in (4, 8)]
    assert [one["parameters"] for one in (facts, small, large)] == [alone[at]["parameters"] for at in (0, 0, 1)]
    assert small["memory_bytes_per_rank"]["teachers"] == 4 * large["parameters"]
    assert large["memory_bytes_per_rank"]["teachers"] == 0
    assert small["phases"]["train"]["teachers_flops_per_step"] == 16 * alone[1]["forward_flops_per_sample"]
    assert large["phases"]["train"] == alone[1]["phases"]["train"]
    assert facts["memory_bytes_per_rank"] == large["memory_bytes_per_rank"]
    assert estimate(spec, facts, [])["bytes_received"] == 5 * 4 * large["parameters"]  # versions 3, 4, 6, 8, 10
    # Of 12 steps 9 come after the burn-in, in which one of both hears the other.
    own = [one["phases"]["train"]["flops_per_step"] for one in alone]
    heard = 16 * alone[1]["forward_flops_per_sample"]
    assert effort_of(spec, facts) == Effort(2 * 12 * 16, "samples", 12 * sum(own) + 9 * heard)
    assert flops_by_step(spec, facts, 5) == 5 * sum(own) + 2 * heard
    assert share_without_teachers(spec, facts) == sum(own) / (sum(own) + heard)
