"""A loop of one's own: three lines, the same numbers as the product's loop, and the examples of the documentation."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import codistill
from codistill.batch import Batch
from codistill.data.loader import training_batches
from codistill.own_loop import show
from codistill.phase import Replica
from codistill.randomness import seed_everything
from codistill.recipes import open_recipe
from codistill.records import LEDGER, _read_directory  # pyright: ignore[reportPrivateUsage]
from codistill.spec import Explicit, JobSpec
from tests.support import final_weights, new_run, run_in_turns, small_spec

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"


def test_three_lines_are_what_the_product_does(tmp_path: Path) -> None:
    spec = small_spec(
        recipe={"batch_norm": False},
        training={"optimizer": {"kind": "sgd", "learning_rate": 0.05}, "schedule": {"kind": "constant"}},
        exchange={"precision": "bf16"},
        method={"weight": 0.7, "temperature": 2.0, "divergence": "reverse_kl"},
    )
    run = new_run(tmp_path / "product", spec)
    run_in_turns(run)
    models = [model_of(spec, index) for index in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda index: own_loop(spec, index, models[index], tmp_path / "own"), range(2)))
    for index, model in enumerate(models):
        for name, weights in final_weights(run, index).items():
            torch.testing.assert_close(model.state_dict()[name], weights, rtol=0, atol=1e-6)
    ledger = _read_directory(tmp_path / "own" / "attempts/1/replicas/replica-0/ledger", LEDGER).to_pylist()
    assert [(row["step"], row["version"]) for row in ledger][:4] == [(3, 3), (4, 4), (5, 4), (6, 6)]
    assert ledger[0]["bytes_received"] == 2 * sum(parameter.numel() for parameter in models[0].parameters())


def model_of(spec: JobSpec, index: int) -> nn.Module:
    seed_everything(spec.seed, index, "train", "init")
    return open_recipe(spec).build_model()


def own_loop(spec: JobSpec, index: int, model: nn.Module, directory: Path) -> None:
    recipe = open_recipe(spec)
    batches = training_batches(recipe.split("train"), spec.data, Replica(index, 2, spec.seed), 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    forward = lambda module, batch: module(batch.views["x"])  # noqa: E731
    with codistill.join(
        model, directory, replica=index, replicas=2, burn_in_steps=3, interval_steps=2, mode="lockstep",
        weight=0.7, temperature=2.0, divergence="reverse_kl", precision="bf16", forward=forward,
    ) as peers:  # fmt: skip
        for step in range(spec.training.steps):
            batch: Batch = batches(step)
            outputs = model(batch.views["x"])
            loss = recipe.task_loss(outputs, batch) + peers.loss(batch, outputs["logits"], step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            peers.after_step(step)


def test_ages_are_limited_as_told(tmp_path: Path) -> None:
    def peers(replica: int, **limits: int) -> codistill.own_loop.JoinedPeers:
        return codistill.join(
            nn.Linear(2, 3), tmp_path / "own", replica=replica, replicas=2, burn_in_steps=0, interval_steps=4,
            mode="lockstep", **limits,
        )  # fmt: skip

    other, mine = peers(1), peers(0, max_offset_steps=1)
    heard: list[int] = []
    for step in range(4):
        mine.loss((torch.ones(1, 2),), torch.zeros(1, 3), step)
        heard.append(len(mine.report()))
    assert heard == [1, 1, 0, 0]
    other.close()
    mine.close()


@pytest.mark.slow
def test_the_example_runs_alone_and_under_torchrun(tmp_path: Path) -> None:
    """Two replicas of one process each, then one of them of two ranks: in lockstep the same to rounding."""
    alone = [sys.executable, str(EXAMPLES / "own_loop.py")]
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(EXAMPLES / "own_loop.py"),
    ]  # fmt: skip
    for name, commands in (("alone", [alone, alone]), ("ranks", [torchrun, alone])):
        run = tmp_path / name
        options = [
            ["--directory", str(run), "--replica", str(i), "--mode", "lockstep", "--steps", "90"] for i in range(2)
        ]
        said = together([command + own for command, own in zip(commands, options, strict=True)])
        assert "heard replica-1 v80" in said[0]
        assert "heard replica-0 v80" in said[1]
    for index in range(2):
        one, two = (torch.load(tmp_path / f"{name}-{index}.pt") for name in ("alone", "ranks"))
        for (name, weights), other in zip(one.items(), two.values(), strict=True):
            torch.testing.assert_close(other, weights, rtol=0, atol=1e-5, msg=name)


def together(commands: list[list[str]]) -> list[str]:
    """Run commands at the same time; what each said."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    processes = [subprocess.Popen(command, text=True, **pipes) for command in commands]  # pyright: ignore
    said = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(said), "\n".join(said)
    return said


def test_what_is_wrong_is_said_at_the_door(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    with pytest.raises(ValueError, match="replica is 2 of 2; it counts from 0 to 1"):
        codistill.join(model, tmp_path / "run", replica=2, replicas=2, burn_in_steps=0)
    with pytest.raises(ValueError, match="'My Run' is not an id"):
        codistill.join(model, tmp_path / "My Run", replica=0, replicas=2, burn_in_steps=0)
    pair: dict[str, Any] = {"replica": 0, "replicas": 2, "burn_in_steps": 0}
    with pytest.raises(ValueError, match="lists teachers of 3 replicas, there are 2"):
        codistill.join(model, tmp_path / "run", topology=Explicit(teachers=((1,), (), ())), **pair)
    with pytest.raises(ValueError, match="'logit_regression' compares logits, which have no temperature"):
        codistill.join(model, tmp_path / "run", divergence="logit_regression", temperature=2.0, **pair)
    assert not (tmp_path / "run").exists(), "nothing is begun"
    alone: dict[str, Any] = {"replica": 0, "replicas": 1, "burn_in_steps": 0, "start_together_s": 0}
    with codistill.join(model, tmp_path / "run", **alone) as peers:
        assert peers.loss(torch.zeros(4, 2), model(torch.zeros(4, 2)), 0) == 0
        peers.after_step(0)
    with pytest.raises(ValueError, match="holds a run in which replica-0 ended after 1 steps"):
        codistill.join(model, tmp_path / "run", **alone)
    codistill.join(model, tmp_path / "run", step=1, **alone).close()


@pytest.mark.parametrize(
    "batch", [torch.ones(2), (torch.ones(2), "label"), [torch.ones(2)], {"input": torch.ones(2)}], ids=type
)
def test_a_batch_is_shown_as_loops_usually_do(batch: Any) -> None:
    model = nn.Linear(2, 3)
    assert torch.equal(show(model, batch), model(torch.ones(2)))
