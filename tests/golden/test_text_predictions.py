"""Predictions of a language model, through files: against a loop written out here, and against memory bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from codistill import records
from codistill.data.loader import training_batches
from codistill.exchange.transport import connect_files
from codistill.phase import Replica
from codistill.randomness import seed_everything, uniforms
from codistill.recipes import open_recipe
from codistill.spec import JobSpec, Predictions, replica_name
from tests.datasets import write_text
from tests.support import final_weights, fingerprint, new_run, run_in_turns, small_spec

PLACES, BYTES = 8, 256
FORMS: dict[str, dict[str, Any]] = {"top_k": {"top_k": 5}, "sampled": {"draws": 30}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    write_text(directory)
    return directory


@pytest.fixture(autouse=True)
def _data(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODISTILL_DATA", str(home))


def tiny(form: str) -> JobSpec:
    """40 windows of 8 bytes in batches of 10, each replica in an order of its own: an epoch is 4 steps."""
    return small_spec(
        recipe={"kind": "text", "context": PLACES, "width": 8, "layers": 1, "heads": 2, "train_size": 40},
        training={
            "steps": 12,
            "batch_size": 10,
            "schedule": {"kind": "constant"},
            "optimizer": {"kind": "sgd", "learning_rate": 0.2},
        },
        method={"burn_in_steps": 0, "weight": 3.0},
        exchange={"currency": {"kind": "predictions", "form": form, **FORMS[form]}, "interval_steps": 1},
    )


def told(currency: Predictions, logits: Tensor, sample: int, step: int, replica: int) -> Tensor:
    """Probabilities [places, bytes] that travel of what was said [places, bytes] of a sample."""
    p = logits.softmax(-1)
    target = torch.zeros_like(p)
    if currency.form == "top_k":
        for place in range(PLACES):
            named = p[place].argsort(descending=True)[: currency.top_k]
            halves = torch.cat([p[place, named], 1 - p[place, named].sum(0, keepdim=True)]).log().half().float().exp()
            halves /= halves.sum()
            target[place] = halves[-1] / (BYTES - currency.top_k)
            target[place, named] = halves[:-1]
        return target
    numbers = uniforms(torch.tensor([sample]), PLACES * currency.draws, 0, replica, "predictions", "draws", step)
    for place, row in enumerate(numbers.reshape(PLACES, currency.draws).double()):
        heights = p[place].double().cumsum(0) / p[place].double().sum()
        for number in row:
            target[place, int((heights <= number).sum())] += 1 / currency.draws
    return target


def learning_from_what_was_said(spec: JobSpec) -> tuple[list[dict[str, Tensor]], list[int]]:
    """Two nets in plain PyTorch, each pulled to what the other last told of the same window. Returns weights, and for
    how many of its samples each found something."""
    recipe, currency = open_recipe(spec), spec.exchange.currency
    assert isinstance(currency, Predictions)
    nets, optimizers, batches = [], [], []
    for index in range(2):
        seed_everything(spec.seed, index, "train", "init")
        nets.append(recipe.build_model())
        optimizers.append(torch.optim.SGD(nets[-1].parameters(), lr=0.2, momentum=0.9, weight_decay=1e-4))
        who = Replica(index, 2, spec.seed)
        batches.append(training_batches(recipe.split("train"), spec.data, who, spec.training.batch_size))
    known: list[dict[int, Tensor]] = [{}, {}]
    found = [0, 0]
    for step in range(spec.training.steps):
        news: list[dict[int, Tensor]] = [{}, {}]
        for me, other in ((0, 1), (1, 0)):
            batch = batches[me](step)
            logits, term = nets[me](batch.views["x"])["logits"], torch.zeros(())
            for row, sample in enumerate(batch.ids.tolist()):
                news[me][sample] = told(currency, logits[row].detach(), sample, step, me)
                if sample in known[other]:
                    found[me] += 1
                    term = term - (known[other][sample] * logits[row].log_softmax(-1)).sum()
            optimizers[me].zero_grad()
            task = F.cross_entropy(logits.reshape(-1, BYTES), batch.y.reshape(-1))
            (task + 3.0 * term / (len(batch) * PLACES)).backward()
        for me in range(2):
            optimizers[me].step()
            known[me] |= news[me]
    return [{name: p.detach() for name, p in net.state_dict().items()} for net in nets], found


@pytest.mark.parametrize("form", FORMS)
def test_each_learns_from_what_the_other_told_of_the_same_window(tmp_path: Path, form: str) -> None:
    spec = tiny(form)
    files, memory = (new_run(tmp_path, spec, name) for name in ("files", "memory"))
    run_in_turns(files, connect=connect_files)
    run_in_turns(memory)
    expected, found = learning_from_what_was_said(spec)
    for index in range(2):
        ended = final_weights(files, index)
        assert fingerprint(ended) == fingerprint(final_weights(memory, index))
        for name in ended:
            assert_close(ended[name], expected[index][name], atol=5e-6, rtol=0)
        metrics = records.read(files, replica_name(index), "metrics")
        counted = [records.values(metrics, f"predictions/{name}")[1][-1] for name in ("found", "missed")]
        assert counted == [found[index], 12 * 10 - found[index]]
        assert found[index] > 80
