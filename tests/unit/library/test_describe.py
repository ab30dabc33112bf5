"""Facts about a spec, against what training really does and against numbers worked out by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from codistill import describe as module
from codistill.data.split import TensorSplit
from codistill.describe import describe, main
from codistill.price import estimate
from codistill.recipes.own import OwnRecipe
from codistill.study.effort import Effort, effort_of
from tests.support import SMALL, new_run, run_in_turns, small_spec


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_bytes_are_those_that_travel(precision: str, tmp_path: Path) -> None:
    spec = small_spec(replicas={"count": 3}, exchange={"precision": precision})
    facts = describe(spec)
    results = run_in_turns(new_run(tmp_path, spec))
    sent = results[0]["bytes_sent"]
    assert facts["bytes_per_snapshot"] * 5 == sent  # versions 3, 4, 6, 8, 10
    assert facts["bytes_received_per_exchange"] * 5 == results[0]["bytes_received"] == 2 * sent
    assert facts["teachers_per_replica"] == 2
    buffers = 2 * 4 * (4 + 8) + 2 * 8  # mean and variance of 4 and of 8 channels, and two counters
    assert facts["bytes_per_snapshot"] == facts["parameters"] * {"fp32": 4, "fp16": 2}[precision] + buffers
    assert (facts["classes"], facts["taps"]) == (10, {"features": [32], "logits": [10]})


@pytest.mark.parametrize("form", ["dense", "top_k", "sampled"])
def test_bytes_of_predictions_are_those_that_travel(form: str, tmp_path: Path) -> None:
    currency = {"kind": "predictions", "form": form, "top_k": 4, "draws": 3}
    spec = small_spec(replicas={"count": 3}, exchange={"currency": currency}, training={"steps": 9})
    facts, plain = describe(spec), describe(small_spec(method={"kind": "solo"}, training={"steps": 9}))
    rows = {"dense": 16 + 10 * 2, "top_k": 16 + 4 * (1 + 2) + 2, "sampled": 16 + 2 * 4 + 2 + 1 + 3 * 2}
    assert facts["bytes_per_snapshot"] == 2 * 16 * rows[form]
    assert facts["bytes_received_per_exchange"] == 2 * facts["bytes_per_snapshot"]
    results = run_in_turns(new_run(tmp_path, spec))
    # Versions 3, 6, 8 hold two steps and version 4 holds one; each has a frame.
    least = 3.5 * facts["bytes_per_snapshot"] * (1.0 if form != "sampled" else 0.7)
    assert least <= results[0]["bytes_sent"] <= 3.5 * facts["bytes_per_snapshot"] + 4 * 1300
    assert facts["phases"] == plain["phases"]
    held = {"dense": 36, "top_k": 30, "sampled": 21}
    assert facts["memory_bytes_per_rank"]["teachers"] == 2 * 9 * 16 * held[form]


def test_where_not_all_hear_as_many_each_has_facts_of_its_own(tmp_path: Path) -> None:
    one_way = {"topology": {"kind": "explicit", "teachers": [[], [0, 2], [0]]}}
    spec = small_spec(replicas={"count": 3}, exchange=one_way)
    facts, plain = describe(spec), describe(small_spec(method={"kind": "solo"}))
    each = facts["replicas"]
    assert [one["teachers_per_replica"] for one in (*each, facts)] == [0, 2, 1, 2]
    assert each[0]["phases"] == facts["phases"] == plain["phases"]
    results = run_in_turns(new_run(tmp_path, spec))
    received = [results[replica]["bytes_received"] for replica in range(3)]
    assert [5 * one["bytes_received_per_exchange"] for one in (*each, facts)] == [*received, received[1]]
    assert estimate(spec, facts, [])["bytes_received"] == sum(received)
    forward = 16 * plain["forward_flops_per_sample"]
    own = plain["phases"]["train"]["flops_per_step"]
    assert effort_of(spec, facts) == Effort(3 * 12 * 16, "samples", 3 * 12 * own + (12 - 3) * 3 * forward)
    assert facts["memory_bytes_per_rank"] == each[1]["memory_bytes_per_rank"]
    assert "replicas" not in describe(small_spec(replicas={"count": 3}))


def test_replicas_that_are_averaged_have_peers_but_no_teachers(tmp_path: Path) -> None:
    spec = small_spec(replicas={"count": 3}, method={"kind": "diloco"})
    facts, plain = describe(spec), describe(small_spec(method={"kind": "solo"}))
    results = run_in_turns(new_run(tmp_path, spec))
    assert facts["bytes_received_per_exchange"] * 6 == results[0]["bytes_received"]  # versions 2, 4, ..., 12
    assert facts["bytes_received_per_exchange"] == 2 * facts["bytes_per_snapshot"]
    assert (facts["teachers_per_replica"], facts["memory_bytes_per_rank"]["teachers"]) == (0, 0)
    assert facts["phases"] == plain["phases"]
    memory = facts["memory_bytes_per_rank"]
    assert memory["outer"] == 2 * 4 * facts["parameters"]
    assert memory["outgoing"] == facts["bytes_per_snapshot"]
    assert memory["total"] - plain["memory_bytes_per_rank"]["total"] == memory["outer"] + memory["outgoing"]
    assert plain["memory_bytes_per_rank"]["outgoing"] == 0


def test_gradients_among_ranks_are_what_a_ring_sends_and_each_rank_fetches() -> None:
    """Each of n ranks sends 2 (n - 1) / n of the gradients."""
    facts, alone = describe(small_spec(replicas={"ranks": 4})), describe(small_spec())
    assert facts["gradient_bytes_per_step"] == 4 * (2 * 3 / 4) * 4 * facts["parameters"]
    assert alone["gradient_bytes_per_step"] == 0
    assert facts["bytes_per_snapshot"] == alone["bytes_per_snapshot"]
    assert facts["bytes_received_per_exchange"] == 4 * alone["bytes_received_per_exchange"]


def test_memory_and_work_of_a_small_net_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    split = TensorSplit(torch.arange(4), torch.zeros(4, dtype=torch.int64), {"x": torch.zeros(4, 30)})
    net = OwnRecipe(2, lambda: nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2)), lambda name: split)
    monkeypatch.setattr(module, "open_recipe", lambda spec: net)
    training = {"batch_size": 8, "accumulate": 2, "ema_decay": 0.9, "optimizer": {"kind": "adamw"}}
    facts = describe(small_spec(training=training))
    parameters = 30 * 16 + 16 + 16 * 2 + 2
    assert facts["parameters"] == parameters
    # The input, the ReLU's output (which is the next layer's input), the student's log-probabilities of the label loss
    # and of the teacher's, the teacher's own, the labels, and what they are divided by.
    kept = 4 * (4 * (30 + 16) + 3 * 4 * 2) + 8 * 4 + 4
    assert facts["memory_bytes_per_rank"] == {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "optimizer": 8 * parameters,
        "average": 4 * parameters,
        "teachers": 4 * parameters,
        "outgoing": 4 * parameters,
        "outer": 0,
        "activations": kept,
        "total": 28 * parameters + kept,
    }
    forward, to_the_hidden_layer = 2 * (30 * 16 + 16 * 2), 2 * 16 * 2
    assert facts["forward_flops_per_sample"] == forward
    train = facts["phases"]["train"]
    assert (train["parameters"], train["steps"]) == (parameters, 12)
    assert train["flops_per_step"] == 8 * (2 * forward + to_the_hidden_layer), "the input needs no gradient"
    assert train["teachers_flops_per_step"] == 8 * forward


def kinds(**change: Any) -> dict[str, Any]:
    return describe(small_spec(**change))


def test_methods_of_several_networks_and_phases_take_what_their_parts_do() -> None:
    solo = kinds(method={"kind": "solo"})
    of_one = solo["phases"]["train"]["flops_per_step"]
    three = kinds(method={"kind": "deep_mutual_learning", "nets": 3})["phases"]["train"]
    assert (three["parameters"], three["flops_per_step"]) == (3 * solo["parameters"], 3 * of_one)
    wide = {"kind": "digits", "width": 8, "train_size": 200}
    first = {"kind": "trained_first", "steps": 7, "recipe": wide}
    distilled = kinds(method={"kind": "knowledge_distillation", "teacher": first})
    teacher, student = distilled["phases"]["teacher"], distilled["phases"]["train"]
    alone = kinds(recipe=wide, method={"kind": "solo"})
    assert teacher == {**alone["phases"]["train"], "steps": 7}
    assert student["flops_per_step"] == of_one
    assert student["teachers_flops_per_step"] == 16 * alone["forward_flops_per_sample"]
    memory, plain = distilled["memory_bytes_per_rank"], solo["memory_bytes_per_rank"]
    largest = max(alone["memory_bytes_per_rank"]["total"], plain["total"] + alone["memory_bytes_per_rank"]["weights"])
    assert memory["total"] == pytest.approx(largest, abs=4 * 16 * 10 * 4), "but for what the divergence keeps"
    critics = kinds(method={"kind": "afd"})["phases"]["train"]
    assert critics["flops_per_step"] > 2 * 2 * of_one, "two networks go forward and back twice"


def test_the_command_needs_no_data_and_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(SMALL))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "codistill.describe", str(spec)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == describe(small_spec())
    missing: dict[str, Any] = {**SMALL, "recipe": {"kind": "installed", "name": "nowhere"}}
    for content, code, words in (
        ({**SMALL, "colour": 1}, 2, "colour"),
        (missing, 3, "no installed package declares a recipe 'nowhere'"),
    ):
        spec.write_text(json.dumps(content))
        assert main([str(spec)]) == code
        assert words in capsys.readouterr().err
