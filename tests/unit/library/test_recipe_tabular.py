"""The recipe `tabular`: which columns the model is shown, in which order, and what it makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from codistill.recipes import RecipeUnavailable, open_recipe
from codistill.recipes.models.table import TableNet
from codistill.recipes.tabular import TabularRecipe
from codistill.spec import JobSpec, Tabular
from tests.datasets import write_flights, write_images

SHOWN = ["destination", "hour", "origin", "weekday", "distance"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_flights(tmp_path)
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path))


def test_rows_are_codes_then_numbers_and_no_column_gives_the_answer_away(tmp_path: Path) -> None:
    recipe = TabularRecipe(Tabular())
    assert list(recipe.columns) == SHOWN
    table = pq.read_table(tmp_path / "flights" / "test-00000.parquet")
    ids = torch.tensor([879, 720, 800])
    batch = recipe.split("test").read(ids)
    expected = np.stack([table[name].to_numpy()[[159, 0, 80]] for name in SHOWN], axis=1)
    assert batch.views["x"].tolist() == expected.tolist()
    assert batch.y.tolist() == table["late"].to_numpy()[[159, 0, 80]].tolist()
    assert batch.views["x"].dtype == torch.float32


def test_the_model_looks_codes_up_and_normalises_numbers() -> None:
    net: Any = TableNet(
        categories=[3, 2], mean=[10.0], std=[4.0], embedding=2, width=5, layers=1, dropout=0.0
    )  # fmt: skip
    rows = torch.tensor([[2.0, 0.0, 18.0], [0.0, 1.0, 6.0]])
    first, second = net.embeddings[0].weight, net.embeddings[1].weight
    shown = torch.stack([torch.cat([first[2], second[0], torch.tensor([2.0])]),
                         torch.cat([first[0], second[1], torch.tensor([-1.0])])])  # fmt: skip
    hidden = torch.relu(shown @ net.body[0].weight.T + net.body[0].bias)
    taps = net(rows)
    torch.testing.assert_close(taps["features"], hidden)
    torch.testing.assert_close(taps["logits"], hidden @ net.head.weight.T + net.head.bias)
    assert not [name for name in net.state_dict() if name in ("mean", "std")]


def test_sizes_come_from_the_description_and_no_row_is_read(tmp_path: Path) -> None:
    recipe = open_recipe(JobSpec(recipe=Tabular(embedding=4, width=8)))
    for path in (tmp_path / "flights").glob("*.parquet"):
        path.unlink()
    net = recipe.build_model()
    shapes = [tuple(embedding.weight.shape) for embedding in net.embeddings]  # pyright: ignore
    assert shapes == [(12, 4), (24, 4), (12, 4), (7, 4)]
    assert recipe.example(3).views["x"].shape == (3, 5)
    assert net(recipe.example(3).views["x"])["logits"].shape == (3, 2)
    assert list(recipe.data_digests()) == ["flights"]


def test_it_learns_who_is_late() -> None:
    torch.manual_seed(0)
    recipe = open_recipe(JobSpec(recipe=Tabular(embedding=4, width=16)))
    net, split = recipe.build_model(), recipe.split("train")
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-2)
    for step in range(30):
        batch = split.read(split.ids[step % 5 * 120 : step % 5 * 120 + 120])
        loss = recipe.task_loss(net(batch.views["x"]), batch)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in net.parameters())
        optimizer.step()
    test = recipe.split("test").read(recipe.split("test").ids)
    rate = float(split.read(split.ids).y.float().mean())
    late = test.y.float()
    constant = -float((late * np.log(rate) + (1 - late) * np.log(1 - rate)).mean())
    assert float(recipe.task_loss(net(test.views["x"]), test).detach()) < 0.9 * constant


def test_rows_are_drawn_once_and_for_all() -> None:
    recipe = TabularRecipe(Tabular(train_size=100, evaluation_size=30))
    assert [len(recipe.split(part).ids) for part in ("train", "validation", "test")] == [100, 30, 30]
    whole = TabularRecipe(Tabular())
    assert [len(whole.split(part).ids) for part in ("train", "validation", "test")] == [600, 120, 160]
    with pytest.raises(ValueError, match="601 samples of 'train' are asked for, the data set has 600"):
        _ = TabularRecipe(Tabular(train_size=601)).split("train").ids


def test_another_layout_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path)
    with pytest.raises(
        RecipeUnavailable, match=r"'tabular' cannot use data set 'fashion-mnist' .* lacks the facts categ"
    ):
        TabularRecipe(Tabular(data="fashion-mnist")).build_model()
