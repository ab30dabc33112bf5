"""Models for small images. All map images [N, channels, height, width], uint8 or float on the scale 0..255, to taps
`features` [N, width of the last layer] and `logits` [N, classes]."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Normalise(nn.Module):
    """From 0..255 to channels of mean 0 and deviation 1, given the mean and deviation of values in 0..1."""

    offset: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Neither trained nor saved: they belong to the data, not to the weights that replicas exchange.
        self.register_buffer("offset", 255 * torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)[:, None, None]), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() - self.offset) * self.scale


class Classifier(nn.Module):
    """A body from normalised images to features, and a linear head. `cuts` are the places where the body ends a stage:
    what comes after the last belongs to none."""

    def __init__(
        self,
        body: nn.Sequential,
        cuts: Sequence[int],
        features: int,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.cuts = (0, *cuts)
        self.normalise = Normalise(mean, std)
        self.body = body
        self.head = nn.Linear(features, classes)

    def enter(self, images: Tensor) -> Tensor:
        """What the first stage is shown."""
        return self.normalise(images)

    def stages(self) -> list[nn.Module]:
        """Each maps what the one before gives."""
        return [self.body[first:last] for first, last in itertools.pairwise(self.cuts)]

    def leave(self, maps: Tensor) -> dict[str, Tensor]:
        """From what the last stage gives to the taps."""
        features = self.body[self.cuts[-1] :](maps)
        return {"features": features, "logits": self.head(features)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.body(self.normalise(images))
        return {"features": features, "logits": self.head(features)}


class Shift(nn.Module):
    """Moves each channel by up to one pixel up, down, left and right: one ninth of the channels each way, in the order
    of the places of a 3 x 3 kernel. What comes in is 0. Without parameters."""

    def forward(self, maps: Tensor) -> Tensor:
        height, width = maps.shape[-2:]
        ninths = F.pad(maps, (1, 1, 1, 1)).tensor_split(9, dim=1)
        places = itertools.product(range(3), range(3))
        moved = [each[..., y : y + height, x : x + width] for each, (y, x) in zip(ninths, places, strict=True)]
        return torch.cat(moved, dim=1)


def convolve(
    kind: str, before: int, after: int, *, stride: int = 1, bias: bool = False, groups: int | None = None
) -> nn.Module:
    """A 3 x 3 convolution, or what is cheaper: of 9 * before * after weights, `group` has a `groups`-th (a quarter,
    unless told), `depthwise` 9 * before + before * after, and `shift` before * after."""
    match kind:
        case "standard":
            return nn.Conv2d(before, after, 3, stride, padding=1, bias=bias)
        case "group":
            return nn.Conv2d(before, after, 3, stride, padding=1, bias=bias, groups=groups or 4)
        case "depthwise":
            each = nn.Conv2d(before, before, 3, stride, padding=1, bias=False, groups=before)
            return nn.Sequential(each, nn.Conv2d(before, after, 1, bias=bias))
        case "shift":
            return nn.Sequential(Shift(), nn.Conv2d(before, after, 1, stride, bias=bias))
        case _:
            raise ValueError(f"convolution '{kind}' is none of standard, group, depthwise, shift")


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm around a shortcut (He et al. 2016, arXiv 1512.03385), which is a 1 x 1
    convolution where the shape changes."""

    def __init__(self, before: int, width: int, stride: int, kind: str = "standard", groups: int | None = None) -> None:
        super().__init__()
        self.first = convolve(kind, before, width, stride=stride, groups=groups)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = convolve(kind, width, width, groups=groups)
        self.second_norm = nn.BatchNorm2d(width)
        same = before == width and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, images: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(images)))
        return F.relu(self.second_norm(self.second(inner)) + self.shortcut(images))


def build_mlp(
    *,
    shape: Sequence[int],
    classes: int,
    width: int,
    layers: int,
    dropout: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> Classifier:
    """`layers` hidden layers of `width` with ReLU."""
    channels, height, breadth = shape
    body: list[nn.Module] = [nn.Flatten()]
    before = channels * height * breadth
    for _ in range(layers):
        body += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(dropout)]
        before = width
    cuts = [1 + 3 * layer for layer in range(1, layers + 1)]
    return Classifier(nn.Sequential(*body), cuts, width, classes, mean, std)


def build_cnn(
    *,
    shape: Sequence[int],
    classes: int,
    width: int,
    batch_norm: bool,
    dropout: float,
    mean: Sequence[float],
    std: Sequence[float],
    convolution: str = "standard",
    groups: int | None = None,
) -> Classifier:
    """Two 3 x 3 convolutions (`width` and twice as many channels), each with ReLU and 2 x 2 pooling, then a hidden
    layer of four times `width`. At width 16 on 28 x 28 about 106,000 parameters."""
    channels, height, breadth = shape
    norm = nn.BatchNorm2d if batch_norm else nn.Identity
    flat = 2 * width * (height // 4) * (breadth // 4)
    body = nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1), norm(width), nn.ReLU(), nn.MaxPool2d(2),
        convolve(convolution, width, 2 * width, bias=True, groups=groups), norm(2 * width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(flat, 4 * width), nn.ReLU(), nn.Dropout(dropout),
    )  # fmt: skip
    return Classifier(body, [4, 8], 4 * width, classes, mean, std)


def build_resnet(
    *,
    shape: Sequence[int],
    classes: int,
    width: int,
    blocks: int,
    mean: Sequence[float],
    std: Sequence[float],
    convolution: str = "standard",
    groups: int | None = None,
) -> Classifier:
    """Three stages of `blocks` residual blocks, of `width`, twice and four times as many channels; each but the first
    halves the resolution. The features are the mean over all places."""
    body: list[nn.Module] = [
        nn.Conv2d(shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    ]  # fmt: skip
    before = width
    for stage in range(3):
        for block in range(blocks):
            after = width * 2**stage
            body.append(ResidualBlock(before, after, 2 if stage and not block else 1, convolution, groups))
            before = after
    body += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    cuts = [3 + blocks * stage for stage in (1, 2, 3)]
    return Classifier(nn.Sequential(*body), cuts, before, classes, mean, std)


def build(config: dict[str, Any]) -> Classifier:
    """The model of a `config.json`."""
    builders = {"mlp": build_mlp, "cnn": build_cnn, "resnet": build_resnet}
    return builders[config["architecture"]](**config["model"])
