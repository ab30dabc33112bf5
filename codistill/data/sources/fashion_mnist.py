"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747): 70,000 grey images of clothes, 28 x 28, ten classes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from codistill.data.home import DataError
from codistill.data.layouts import Array, Images, Layout, image_layout
from codistill.data.sources.base import Package, Source

CLASS_NAMES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
IDX_BYTES = 0x08
VALIDATION_SHARE = 12
"""One in so many images of the training file is for validation: 5,000 of 60,000."""


def build(files: Mapping[str, bytes]) -> Layout:
    """Training file: 11/12 train and 1/12 validation; the test file is the test."""
    images, labels, test_images, test_labels = (read_idx(files[name], name) for name in FILES)
    train, test = _pair(images, labels), _pair(test_images, test_labels)
    chosen = validation_rows(len(train.labels))
    rest = np.setdiff1d(np.arange(len(train.labels)), chosen)
    return image_layout(
        {
            "train": Images(train.images[rest], train.labels[rest]),
            "validation": Images(train.images[chosen], train.labels[chosen]),
            "test": test,
        },
        CLASS_NAMES,
    )


def read_idx(content: bytes, name: str) -> Array:
    """An array of bytes from the IDX format: two zero bytes, type, rank, the sizes (big-endian), the values."""
    if len(content) < 4 or content[:3] != bytes([0, 0, IDX_BYTES]):
        raise DataError(
            f"{name} is not an IDX file of bytes: it begins with {content[:4].hex() or 'nothing'}; is it the right one?"
        )
    rank = content[3]
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", count=rank, offset=4))
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if values.size != np.prod(shape):
        raise DataError(f"{name} states {np.prod(shape)} values {shape} and has {values.size}; is it complete?")
    return values.reshape(shape)


def validation_rows(rows: int) -> Array:
    """Which rows of the training file are for validation, ascending: those of the smallest hashes, so that the choice
    depends on no library's generator."""
    by_lot = sorted(range(rows), key=lambda row: hashlib.sha256(f"fashion-mnist/{row}".encode()).digest())
    return np.sort(np.array(by_lot[: rows // VALIDATION_SHARE], dtype=np.int64))


def _pair(images: Array, labels: Array) -> Images:
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DataError(
            f"images {images.shape} and labels {labels.shape} do not belong together; are they of one release?"
        )
    if labels.size and labels.max() >= len(CLASS_NAMES):
        raise DataError(
            f"there is a label {labels.max()}, the classes are 0 to {len(CLASS_NAMES) - 1}; is it the right file?"
        )
    return Images(images[:, None], labels)


SOURCE = Source(
    name="fashion-mnist",
    title="Fashion-MNIST",
    description=(
        "Grey images of clothes, 28 x 28, ten balanced classes. The 60,000 images of the training file are cut by a"
        " hash of their row into 55,000 for training and 5,000 for validation; the test file is the test."
    ),
    licence="MIT",
    url="https://github.com/zalandoresearch/fashion-mnist",
    package=Package(
        "apt",
        "dataset-fashion-mnist",
        "0.0~git20200523.55506a9-1",
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        31,
    ),
    files=FILES,
    build=build,
    rows={"train": 55_000, "validation": 5_000, "test": 10_000},
)
