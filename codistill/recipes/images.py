"""`images`: small images with class labels, and an MLP, a CNN or a residual network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from codistill import losses
from codistill.batch import Batch, Outputs
from codistill.data.catalog import Dataset
from codistill.data.parquet import Array, Columns, ParquetRows, ParquetSplit
from codistill.data.split import SplitName
from codistill.randomness import Name, uniforms
from codistill.recipes.code import loading_code
from codistill.recipes.data import dataset_of
from codistill.recipes.models import images as models
from codistill.spec import Images


class ImagesRecipe:
    """See the module and `codistill.recipes.base.Recipe`."""

    unit: Literal["samples"] = "samples"
    units_per_sample = 1

    def __init__(self, spec: Images) -> None:
        self._spec = spec

    @cached_property
    def _data(self) -> Dataset:
        return dataset_of("images", self._spec.data, ("image_shape", "class_names", "pixel_mean", "pixel_std"))

    @property
    def classes(self) -> int:
        return len(cast(list[str], self._data.fact("class_names")))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = cast(list[int], self._data.fact("image_shape"))
        return channels, height, width

    def build_model(self) -> nn.Module:
        return models.build(self.config())

    def split(self, name: SplitName) -> ParquetSplit:
        spec, entry = self._spec, self._data.split(name)
        rows = ParquetRows(self._data.paths(name), entry.first_id, ("image", "label"), Decoder(self.shape))
        augment = Augmentation(spec.shift_pixels, spec.flip)
        return ParquetSplit(rows, entry.rows, augment, spec.train_size if name == "train" else None, name)

    def example(self, samples: int) -> Batch:
        zeros = torch.zeros(samples, dtype=torch.int64)
        return Batch(ids=zeros, y=zeros, views={"x": torch.zeros(samples, *self.shape, dtype=torch.uint8)})

    def task_loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        return losses.cross_entropy(outputs["logits"], batch.y)

    def config(self) -> dict[str, object]:
        settings = self._spec.model.model_dump(exclude={"kind"})
        data: dict[str, Any] = {"shape": list(self.shape), "classes": self.classes}
        data |= {"mean": self._data.fact("pixel_mean"), "std": self._data.fact("pixel_std")}
        return {
            "architecture": self._spec.model.kind,
            "model": {**data, **settings},
            "class_names": self._data.fact("class_names"),
            "input": {"shape": ["N", *self.shape], "dtype": "uint8", "range": [0, 255]},
        }

    def loading_code(self) -> str:
        return loading_code(models, "images [N, channels, height, width] in 0..255 to logits [N, classes]")

    def data_digests(self) -> Mapping[str, str]:
        return {self._spec.data: self._data.digest}


@dataclass(frozen=True)
class Decoder:
    """From bytes [n, size] to images [n, channels, height, width], a view."""

    shape: tuple[int, int, int]

    def __call__(self, columns: Columns) -> Columns:
        return {"x": columns["image"].reshape(-1, *self.shape), "y": columns["label"].astype(np.int64)}


@dataclass(frozen=True)
class Augmentation:
    """Moves by up to `shift_pixels` (what comes in is black) and mirroring half of the time, each image by its own
    random stream."""

    shift_pixels: int
    flip: bool

    def __call__(self, ids: Tensor, rows: Columns, stream: tuple[Name, ...] | None) -> Batch:
        images = rows["x"]
        if stream is not None and (self.shift_pixels or self.flip):
            draws = uniforms(ids, 3, *stream).numpy()
            images = shifted(images, draws[:, :2], self.shift_pixels) if self.shift_pixels else images
            images = mirrored(images, draws[:, 2] < 0.5) if self.flip else images
        return Batch(ids=ids, y=torch.from_numpy(rows["y"]), views={"x": torch.from_numpy(images)})


def shifted(images: Array, draws: Array, pixels: int) -> Array:
    """Each of `images` [n, channels, height, width] moved down and right by a number in -pixels..pixels that `draws`
    [n, 2] in [0, 1) chooses; copies."""
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (pixels, pixels), (pixels, pixels)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    moved = np.floor(draws * (2 * pixels + 1)).astype(np.int64)
    return windows[np.arange(len(images)), :, 2 * pixels - moved[:, 0], 2 * pixels - moved[:, 1]]


def mirrored(images: Array, chosen: Array) -> Array:
    """The `chosen` [n] of `images` mirrored left to right, the others as they are; copies."""
    return np.where(chosen[:, None, None, None], images[..., ::-1], images)
