"""`digits`: scikit-learn's 1,797 real images of handwritten digits (8 x 8, 10 classes) and a small CNN.

The split is the same for every seed, so that predictions of independent runs can be compared sample by sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from codistill import losses
from codistill.batch import Batch, Outputs
from codistill.data.split import SplitName, TensorSplit
from codistill.recipes.base import RecipeUnavailable
from codistill.spec import Digits

TEST_SIZE, VALIDATION_SIZE = 497, 300

LOADING_CODE = """
import json
import torch
from safetensors.torch import load_file

config = json.load(open("config.json"))
width = config["width"]
norm = torch.nn.BatchNorm2d if config["batch_norm"] else torch.nn.Identity
body = torch.nn.Sequential(
    torch.nn.Conv2d(1, width, 3, padding=1), norm(width), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
    torch.nn.Conv2d(width, 2 * width, 3, padding=1), norm(2 * width), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
    torch.nn.Flatten(),
)
model = torch.nn.Sequential()
model.add_module("body", body)
model.add_module("head", torch.nn.Linear(8 * width, config["classes"]))
model.load_state_dict(load_file("model.safetensors"))
model.eval()  # maps images [N, 1, 8, 8] in 0..1 to logits [N, classes]
"""


class SmallCnn(nn.Module):
    """Two convolutions, each with ReLU, pooling and (if asked) BatchNorm, then a linear layer. About 7,000 parameters
    at width 16. Maps images [N, 1, 8, 8] to taps `features` [N, 8 * width] and `logits` [N, classes]."""

    def __init__(self, *, width: int, classes: int, batch_norm: bool) -> None:
        super().__init__()
        norm = nn.BatchNorm2d if batch_norm else nn.Identity
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), norm(width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), norm(2 * width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(8 * width, classes)

    def enter(self, images: Tensor) -> Tensor:
        """What the first stage is shown."""
        return images

    def stages(self) -> list[nn.Module]:
        """A convolution each, with what belongs to it."""
        return [self.body[:4], self.body[4:8]]

    def leave(self, maps: Tensor) -> Outputs:
        """From what the last stage gives to the taps."""
        features = self.body[8:](maps)
        return {"features": features, "logits": self.head(features)}

    def forward(self, images: Tensor) -> Outputs:
        features = self.body(images)
        return {"features": features, "logits": self.head(features)}


class DigitsRecipe:
    """See the module and `codistill.recipes.base.Recipe`."""

    classes = 10
    unit: Literal["samples"] = "samples"
    units_per_sample = 1

    def __init__(self, spec: Digits) -> None:
        self._spec = spec

    def build_model(self) -> nn.Module:
        return SmallCnn(width=self._spec.width, classes=self.classes, batch_norm=self._spec.batch_norm)

    def split(self, name: SplitName) -> TensorSplit:
        images, labels = _load()
        ids = _split_ids(len(labels))[name]
        if name == "train":
            ids = ids[: self._spec.train_size]
        ids = ids.sort().values
        return TensorSplit(ids, labels[ids], {"x": images[ids]})

    def example(self, samples: int) -> Batch:
        zeros = torch.zeros(samples, dtype=torch.int64)
        return Batch(ids=zeros, y=zeros, views={"x": torch.zeros(samples, 1, 8, 8)})

    def task_loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        return losses.cross_entropy(outputs["logits"], batch.y)

    def config(self) -> dict[str, object]:
        return {
            "architecture": "small_cnn",
            "width": self._spec.width,
            "batch_norm": self._spec.batch_norm,
            "classes": self.classes,
            "input": {"shape": ["N", 1, 8, 8], "dtype": "float32", "range": [0.0, 1.0]},
        }

    def loading_code(self) -> str:
        return LOADING_CODE

    def data_digests(self) -> Mapping[str, str]:
        images, labels = _load()
        return {"digits": hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()}


def _split_ids(samples: int) -> dict[SplitName, Tensor]:
    by_lot = torch.tensor(sorted(range(samples), key=_lot))
    test, validation, train = by_lot.tensor_split([TEST_SIZE, TEST_SIZE + VALIDATION_SIZE])
    return {"test": test, "validation": validation, "train": train}


def _lot(sample: int) -> int:
    # A hash instead of a generator: the split must not change with the version of a library.
    return xxhash.xxh3_64_intdigest(f"digits/{sample}".encode())


@cache
def _load() -> tuple[Tensor, Tensor]:
    """All images [1797, 1, 8, 8] in 0..1 and labels [1797]."""
    package = find_spec("sklearn")  # found, not imported: that takes a second, and only a file of it is wanted
    places = [] if package is None else [Path(place) for place in package.submodule_search_locations or ()]
    files = [place / "datasets" / "data" / "digits.csv.gz" for place in places]
    found = next((file for file in files if file.exists()), None)
    if found is None:
        raise RecipeUnavailable(
            "recipe 'digits' needs scikit-learn, which carries the images: pip install 'codistill[digits]'"
        )
    table = np.loadtxt(found, delimiter=",", dtype=np.float32)
    return torch.from_numpy(table[:, :-1].reshape(-1, 1, 8, 8) / 16.0), torch.from_numpy(table[:, -1].astype(np.int64))
