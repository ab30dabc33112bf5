"""Recipes: what is trained on what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from codistill.spec.base import OperatorName, Spec


class Digits(Spec):
    """Scikit-learn's 1,797 real images of handwritten digits (8 x 8 pixels, 10 classes) and a small CNN."""

    kind: Literal["digits"] = "digits"
    width: int = Field(default=16, ge=1, le=512)
    """Channels of the first convolution; the second has twice as many."""
    batch_norm: bool = True
    """Whether a BatchNorm follows each convolution."""
    train_size: int = Field(default=1000, ge=20, le=1000)
    """Training images; 300 others are for validation and 497 for the test, whatever this is."""


class Mlp(Spec):
    """Fully connected layers with ReLU."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(default=128, ge=1, le=16_384)
    layers: int = Field(default=1, ge=1, le=16)
    """Hidden layers."""
    dropout: float = Field(default=0.0, ge=0, lt=1)


DEFAULT_GROUPS = 4

Convolution = Literal["standard", "group", "depthwise", "shift"]
"""What a 3 x 3 convolution is made of: `group` cuts its channels into groups that do not mix. `depthwise` has a kernel
for each channel, `shift` moves each channel by up to a pixel; then a 1 x 1 convolution mixes them."""


class Cnn(Spec):
    """Two convolutions, each with ReLU and pooling, then a hidden and a linear layer."""

    kind: Literal["cnn"] = "cnn"
    width: int = Field(default=16, ge=1, le=512)
    """Channels of the first convolution; the second has twice as many."""
    batch_norm: bool = True
    dropout: float = Field(default=0.0, ge=0, lt=1)
    convolution: Convolution = "standard"
    """Of the second; the first sees the image, and stays as it is."""
    groups: int | None = Field(default=None, ge=2, le=512)
    """Of convolution `group`; left out, 4."""

    @model_validator(mode="after")
    def _groups_fit(self) -> Cnn:
        check_groups(self)
        return self


class ResNet(Spec):
    """A residual network with BatchNorm (He et al. 2016): three stages of basic blocks, for small images."""

    kind: Literal["resnet"] = "resnet"
    width: int = Field(default=16, ge=1, le=512)
    """Channels of the first stage; each further one has twice as many and half the resolution."""
    blocks: int = Field(default=1, ge=1, le=18)
    """Basic blocks per stage: n gives 6n + 2 layers."""
    convolution: Convolution = "standard"
    """Of the blocks; the first sees the image, and stays as it is."""
    groups: int | None = Field(default=None, ge=2, le=512)
    """Of convolution `group`; left out, 4."""

    @model_validator(mode="after")
    def _groups_fit(self) -> ResNet:
        check_groups(self)
        return self


def check_groups(model: Cnn | ResNet) -> None:
    """Raises `ValueError` when groups are given and not used, or do not divide the channels."""
    if model.convolution != "group":
        if model.groups is not None:
            raise ValueError(
                f"recipe.model.groups are those of convolution 'group', this is '{model.convolution}'; leave them out"
            )
    elif model.width % (groups := model.groups or DEFAULT_GROUPS):
        raise ValueError(f"recipe.model.width ({model.width}) must be a multiple of recipe.model.groups ({groups})")


class Images(Spec):
    """Small images with class labels: Fashion-MNIST (28 x 28, 10 classes), or any data set of the same columns."""

    kind: Literal["images"] = "images"
    data: OperatorName = "fashion-mnist"
    model: Annotated[Mlp | Cnn | ResNet, Field(discriminator="kind")] = Cnn()
    train_size: int | None = Field(default=None, ge=20)
    """Training images, drawn once and for all seeds alike; left out, all."""
    shift_pixels: int = Field(default=0, ge=0, le=8)
    """Augmentation: each image is moved by up to so many pixels in each direction."""
    flip: bool = False
    """Augmentation: each image is mirrored left to right half of the time."""


class Text(Spec):
    """A language model over the bytes of a text: a transformer with tied embeddings, trained on windows of it."""

    kind: Literal["text"] = "text"
    data: OperatorName = "gcide"
    context: int = Field(default=128, ge=8, le=8192)
    """Bytes per window; a sample is one window."""
    width: int = Field(default=128, ge=8, le=8192)
    layers: int = Field(default=4, ge=1, le=96)
    heads: int = Field(default=4, ge=1, le=128)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    train_size: int | None = Field(default=None, ge=20)
    """Training windows, drawn once and for all seeds alike; left out, all."""
    evaluation_size: int | None = Field(default=256, ge=1)
    """Windows that validation and test look at, drawn once and for all seeds alike; left out, all."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Text:
        if self.width % self.heads:
            raise ValueError(f"recipe.width ({self.width}) must be a multiple of recipe.heads ({self.heads})")
        return self


class Tabular(Spec):
    """Rows of categories and numbers with a yes-or-no label: US flights, late or not. Embeddings and an MLP."""

    kind: Literal["tabular"] = "tabular"
    data: OperatorName = "flights"
    embedding: int = Field(default=16, ge=1, le=1024)
    """Numbers per category."""
    width: int = Field(default=64, ge=1, le=16_384)
    layers: int = Field(default=2, ge=1, le=16)
    """Hidden layers."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    train_size: int | None = Field(default=None, ge=20)
    """Training rows, drawn once and for all seeds alike; left out, all."""
    evaluation_size: int | None = Field(default=None, ge=1)
    """Rows that validation and test look at, drawn once and for all seeds alike; left out, all."""


class Installed(Spec):
    """A recipe of your own: an installed package that declares it as an entry point of `codistill.recipes`."""

    kind: Literal["installed"] = "installed"
    name: OperatorName
    """The entry point's name."""
    options: dict[str, JsonValue] = Field(default={}, max_length=256)
    """Whatever the recipe takes; it checks them itself when it is opened."""


Recipe = Annotated[Digits | Images | Text | Tabular | Installed, Field(discriminator="kind")]
