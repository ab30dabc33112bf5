"""The recipe `images`: what a model is shown, how it is augmented, and that its export stands alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file, save_model

from codistill.recipes import Recipe, RecipeUnavailable, open_recipe
from codistill.recipes.images import mirrored, shifted
from codistill.recipes.models.images import Normalise, build_mlp, build_resnet
from codistill.spec import Cnn, Images, JobSpec, Mlp, ResNet, Tabular, Text
from tests.datasets import synthetic_datasets, write_images, write_text

MODELS = [Mlp(width=32), Cnn(width=4), Cnn(width=4, batch_norm=False), ResNet(width=8)]
PROGRAM = """
import json, os, sys
from safetensors.torch import load_file
sys.modules["codistill"] = None
answers = {}
for name in sys.argv[1:]:
    os.chdir(name)
    loaded = {"__name__": "loaded"}
    exec(compile(open("load.py").read(), name, "exec"), loaded)
    answers[name] = loaded["model"](load_file("inputs.safetensors")["x"]).tolist()
    os.chdir("..")
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("data")
    synthetic_datasets(home)
    return home


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _data(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODISTILL_DATA", str(home))


def recipe(**spec: Any) -> Recipe:
    return open_recipe(JobSpec(recipe=Images(**spec)))


def test_a_batch_is_the_rows_of_the_file(home: Path) -> None:
    split = recipe().split("validation")
    ids = torch.tensor([719, 600, 655])
    batch = split.read(ids)
    table = pq.read_table(home / "fashion-mnist" / "validation-00000.parquet")
    rows = [119, 0, 55]
    pixels = np.frombuffer(b"".join(table["image"].take(rows).to_pylist()), np.uint8).reshape(3, 1, 28, 28)
    assert torch.equal(batch.views["x"], torch.from_numpy(pixels.copy()))
    assert batch.views["x"].dtype == torch.uint8
    assert batch.y.tolist() == table["label"].take(rows).to_pylist()
    assert recipe(train_size=64).split("train").ids.shape == (64,)
    assert recipe(train_size=64).split("test").ids.shape == (160,)


def test_shifts_and_mirrors_move_every_pixel_where_it_belongs() -> None:
    images = np.arange(1, 1 + 2 * 3 * 5 * 4, dtype=np.uint8).reshape(2, 3, 5, 4)
    draws = np.array([[0.0, 0.999], [0.5, 0.2]])  # of -2..2: (-2, 2) and (0, -1)
    moved = shifted(images, draws, 2)
    expected = np.zeros_like(images)
    expected[0, :, :3, 2:] = images[0, :, 2:, :2]
    expected[1, :, :, :3] = images[1, :, :, 1:]
    assert np.array_equal(moved, expected)
    turned = mirrored(images, np.array([True, False]))
    assert np.array_equal(turned[0], np.flip(images[0], axis=2))
    assert np.array_equal(turned[1], images[1])


def test_augmentation_knows_only_seed_step_and_sample() -> None:
    split = recipe(shift_pixels=3, flip=True).split("train")
    ids = split.ids[:200]
    together = split.read(ids, ("augment", 7, 3)).views["x"]
    alone = split.read(ids[[150, 4]], ("augment", 7, 3)).views["x"]
    assert torch.equal(alone, together[[150, 4]])
    plain = split.read(ids).views["x"]
    assert not torch.equal(split.read(ids, ("augment", 7, 4)).views["x"], together)
    assert torch.equal(plain, recipe().split("train").read(ids, ("augment", 7, 3)).views["x"])
    # All 49 shifts and both directions occur about equally often.
    seen: dict[tuple[int, int, bool], int] = {}
    for before, after in zip(plain[:, 0].numpy(), together[:, 0].numpy(), strict=True):
        moves = [(dy, dx, flip) for dy in range(-3, 4) for dx in range(-3, 4) for flip in (False, True)]
        found = [move for move in moves if np.array_equal(by_hand(before, *move), after)]
        assert len(found) == 1
        seen[found[0]] = seen.get(found[0], 0) + 1
    assert 70 <= sum(count for move, count in seen.items() if move[2]) <= 130
    for axis in (0, 1):
        assert sum(count for move, count in seen.items() if move[2] and move[axis] > 0) >= 20  # 42.9 expected
        counts = [sum(count for move, count in seen.items() if move[axis] == shift) for shift in range(-3, 4)]
        assert min(counts) >= 12  # 28.6 expected, deviation 4.9


def by_hand(image: np.ndarray[Any, Any], down: int, right: int, flip: bool) -> np.ndarray[Any, Any]:
    rolled = np.roll(np.pad(image, 3), (down, right), (0, 1))[3:-3, 3:-3]
    return rolled[:, ::-1] if flip else rolled


def test_pixels_reach_the_model_with_mean_0_and_deviation_1() -> None:
    built: Any = recipe().build_model()
    split = recipe().split("train")
    normal = built.normalise(split.read(split.ids).views["x"])
    assert float(normal.mean()) == pytest.approx(0, abs=1e-4)
    assert float(normal.std()) == pytest.approx(1, abs=1e-4)
    channels = Normalise([0.5, 0.0], [0.25, 1.0])(torch.tensor([255.0, 51.0])[None, :, None, None])
    assert channels.flatten().tolist() == pytest.approx([2.0, 0.2])
    assert not [name for name in built.state_dict() if name.startswith("normalise")]


def test_the_models_are_as_large_as_they_should_be() -> None:
    def parameters(**spec: Any) -> int:
        return sum(parameter.numel() for parameter in recipe(**spec).build_model().parameters())

    assert parameters(model=Mlp(width=128)) == 784 * 128 + 128 + 128 * 10 + 10
    cnn = (9 * 16 + 16) + (9 * 16 * 32 + 32) + (32 * 49 * 64 + 64) + (64 * 10 + 10)
    assert parameters(model=Cnn(batch_norm=False)) == cnn
    assert parameters(model=Cnn()) == cnn + 2 * (16 + 32)
    # He et al.'s network for CIFAR-10 has 0.27 M parameters at 20 layers (n = 3), with shortcuts that cost none.
    shortcuts = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    deep = build_resnet(shape=(3, 32, 32), classes=10, width=16, blocks=3, mean=[0.5] * 3, std=[0.5] * 3)
    assert sum(parameter.numel() for parameter in deep.parameters()) == 269_722 + shortcuts
    layers = [
        module for module in deep.modules() if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3)
    ]
    assert len(layers) + 1 == 20
    assert len(build_mlp(shape=(1, 2, 2), classes=2, width=4, layers=3, dropout=0, mean=[0], std=[1]).body) == 1 + 9  # pyright: ignore


@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{model.kind}-{getattr(model, 'batch_norm', '')}")
def test_every_model_learns(model: Any) -> None:
    torch.manual_seed(0)
    chosen = recipe(model=model)
    net, split = chosen.build_model(), chosen.split("train")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.04, momentum=0.9)
    found: list[float] = []
    for step in range(24):
        batch = split.read(split.ids[step % 6 * 60 : step % 6 * 60 + 60])
        loss = chosen.task_loss(net(batch.views["x"]), batch)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in net.parameters())
        optimizer.step()
        found.append(float(loss.detach()))
    assert found[0] == pytest.approx(np.log(10), abs=0.6)
    assert np.mean(found[-3:]) < 0.7 * np.log(10)
    net.eval()
    taps = net(batch.views["x"])
    assert torch.allclose(net.head(taps["features"]), taps["logits"], atol=1e-5)  # pyright: ignore


EXPORTED = {
    "mlp": Images(model=MODELS[0]),
    "cnn": Images(model=MODELS[1]),
    "resnet": Images(model=MODELS[3]),
    "text": Text(context=16, width=16, layers=2, heads=2),
    "tabular": Tabular(embedding=3, width=8),
}


def test_exports_need_torch_alone(tmp_path: Path) -> None:
    """All in one process, each in variables of its own."""
    expected = {name: write_model(tmp_path / name, open_recipe(JobSpec(recipe=EXPORTED[name]))) for name in EXPORTED}
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, *EXPORTED], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answered = json.loads(done.stdout)
    assert answered.keys() == expected.keys()
    for name, logits in expected.items():
        np.testing.assert_allclose(np.array(answered[name]), logits.numpy(), atol=1e-5, err_msg=name)


def write_model(directory: Path, chosen: Recipe) -> torch.Tensor:
    """An export as far as it is needed to load it, and what to show it; answers what it then has to say."""
    directory.mkdir()
    train, test = chosen.split("train"), chosen.split("test")
    net, x = chosen.build_model(), test.read(test.ids[:9]).views["x"]
    net(train.read(train.ids[:20]).views["x"])  # so that BatchNorm has seen something
    net.eval()
    save_model(net, str(directory / "model.safetensors"))
    save_file({"x": x.contiguous()}, directory / "inputs.safetensors")
    (directory / "config.json").write_text(json.dumps(chosen.config()))
    (directory / "load.py").write_text(chosen.loading_code())
    with torch.no_grad():
        return net(x)["logits"]


def test_what_is_missing_is_said_when_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path))
    opened = recipe()
    with pytest.raises(RecipeUnavailable, match=r"recipe 'images': data set 'fashion-mnist' is not in .*data import"):
        opened.split("train")
    with pytest.raises(RecipeUnavailable, match="codistill data import"):
        opened.build_model()
    write_text(tmp_path, "letters")
    with pytest.raises(
        RecipeUnavailable, match=r"cannot use data set 'letters' .* lacks the facts image_shape, class_"
    ):
        _ = recipe(data="letters").classes


def test_other_images_have_their_own_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path))
    data = write_images(tmp_path, "small", side=12, classes=3)
    chosen = recipe(data="small", model=ResNet(width=4))
    assert chosen.classes == 3
    assert chosen.build_model()(chosen.example(2).views["x"])["logits"].shape == (2, 3)
    assert chosen.data_digests() == {"small": data.digest}
    assert chosen.example(2).views["x"].shape == (2, 1, 12, 12)
    assert (chosen.unit, chosen.units_per_sample) == ("samples", 1)
