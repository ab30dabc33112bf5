"""The recipe `text`: a causal model with one embedding matrix, that knows nothing when it begins."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_model

from codistill.recipes import open_recipe
from codistill.recipes.models.transformer import ByteTransformer
from codistill.recipes.text import TextRecipe
from codistill.spec import JobSpec, Text
from tests.datasets import write_text

SMALL: dict[str, Any] = {"context": 24, "width": 16, "layers": 2, "heads": 4}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path)
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path))


@pytest.fixture(autouse=True)
def _no_gradients_unless_trained(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.set_grad_enabled("learns" in request.node.name):
        yield


def model(**settings: Any) -> ByteTransformer:
    torch.manual_seed(0)
    return ByteTransformer(**{**SMALL, "dropout": 0.0, **settings})


def test_a_byte_changes_nothing_before_it() -> None:
    net = model()
    text = torch.randint(0, 256, (3, 24))
    before = net(text)["logits"]
    for place in (1, 10, 23):
        changed = text.clone()
        changed[:, place] = (changed[:, place] + 1) % 256
        after = net(changed)["logits"]
        torch.testing.assert_close(after[:, :place], before[:, :place])
        assert all(float((after[:, at] - before[:, at]).abs().max()) > 1e-6 for at in range(place, 24))


def test_attention_is_the_textbooks() -> None:
    net = model()
    block: Any = net.blocks[0]
    states = torch.randn(2, 5, 16)
    query, key, value = block.qkv(states).chunk(3, dim=-1)
    expected = torch.zeros(2, 5, 16)
    for sample in range(2):
        for head in range(4):
            at = slice(4 * head, 4 * head + 4)
            for place in range(5):
                scores = torch.stack([query[sample, place, at] @ key[sample, j, at] / 2 for j in range(place + 1)])
                expected[sample, place, at] = scores.softmax(0) @ value[sample, : place + 1, at]
    torch.testing.assert_close(block._attend(states), expected)


def test_positions_matter_and_a_shorter_text_is_its_own_beginning() -> None:
    net = model()
    text = torch.randint(0, 256, (2, 24), dtype=torch.uint8)
    torch.testing.assert_close(net(text[:, :9])["logits"], net(text)["logits"][:, :9])
    same = net(torch.full((1, 24), 7))["logits"][0]
    assert float((same[0] - same[5]).abs().max()) > 1e-4


def test_the_embedding_is_one_parameter_and_one_entry_of_the_export(tmp_path: Path) -> None:
    net = model()
    width, context = 16, 24
    block = (3 * width * width + 3 * width) + (width * width + width) + 2 * 4 * width * width + 5 * width + 4 * width
    assert sum(p.numel() for p in net.parameters()) == 256 * width + context * width + 2 * block + 2 * width
    save_model(net, str(tmp_path / "m.safetensors"))
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        shapes = [tuple(file.get_tensor(name).shape) for name in file.keys()]  # noqa: SIM118 - not a mapping
    assert shapes.count((256, 16)) == 1
    with torch.no_grad():
        net.embedding.weight[65] += 1
    taps = net(torch.tensor([[3, 4]]))
    torch.testing.assert_close(taps["logits"], taps["features"] @ net.embedding.weight.T)


def test_it_begins_knowing_nothing_and_learns() -> None:
    recipe = open_recipe(JobSpec(recipe=Text(**SMALL)))
    torch.manual_seed(1)
    net, split = recipe.build_model(), recipe.split("train")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    found: list[float] = []
    for step in range(30):
        batch = split.read(split.ids[torch.randperm(len(split.ids))[:32]], ("augment", 0, step))
        loss = recipe.task_loss(net(batch.views["x"]), batch)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in net.parameters())
        optimizer.step()
        found.append(float(loss.detach()))
    assert found[0] == pytest.approx(math.log(256), abs=0.1)
    assert found[-1] < math.log(13)  # 11 different bytes and the line feed: it has learnt which there are


def test_the_loss_is_nats_per_byte() -> None:
    recipe = open_recipe(JobSpec(recipe=Text(**SMALL)))
    batch = recipe.split("validation").read(recipe.split("validation").ids[:2])
    logits = torch.randn(2, 24, 256)
    by_hand = [
        math.log(sum(math.exp(value) for value in logits[n, at].tolist())) - float(logits[n, at, batch.y[n, at]])
        for n in range(2)
        for at in range(24)
    ]
    assert float(recipe.task_loss({"logits": logits}, batch)) == pytest.approx(sum(by_hand) / 48, rel=1e-5)


def test_dropout_is_off_in_evaluation() -> None:
    net = model(dropout=0.5)
    text = torch.randint(0, 256, (2, 24))
    assert not torch.equal(net(text)["logits"], net(text)["logits"])
    net.eval()
    assert torch.equal(net(text)["logits"], net(text)["logits"])


def test_windows_are_drawn_once_and_for_all() -> None:
    recipe = TextRecipe(Text(**SMALL, train_size=40, evaluation_size=8))
    whole = TextRecipe(Text(**SMALL, evaluation_size=None))
    for part, size in (("train", 40), ("validation", 8), ("test", 8)):
        ids = recipe.split(part).ids  # pyright: ignore
        assert len(ids) == size
        assert set(ids.tolist()) < set(whole.split(part).ids.tolist())  # pyright: ignore
        assert torch.equal(ids, TextRecipe(Text(**SMALL, train_size=40, evaluation_size=8)).split(part).ids)  # pyright: ignore
    assert (recipe.unit, recipe.units_per_sample, recipe.classes) == ("tokens", 24, 256)
    example = recipe.example(3)
    assert recipe.build_model()(example.views["x"])["logits"].shape == (*example.y.shape, 256)
