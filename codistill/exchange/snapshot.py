"""What a replica publishes: named arrays, and a header that says whose they are, how old, and how to check them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
BF16 = ":bf16"
"""Ends the name of an array of uint16 whose bits are those of bfloat16, which numpy does not have."""
_AT_ONCE = 1 << 18
"""Entries of half precision that are widened at once, so that measuring them takes little memory."""


@dataclass(frozen=True, order=True)
class SnapshotId:
    """Which snapshot of a replica; ordered by age, so the newest of one replica is the largest.

    A restarted replica may go back to a lower version: the fence and the incarnation come first, and versions are only
    compared within one incarnation.
    """

    replica: int
    fence: int
    incarnation: int
    version: int
    """Updates the weights had seen: version v is the state after v completed steps."""

    @property
    def of(self) -> tuple[int, int, int]:
        """Whose it is: replica, fence, incarnation."""
        return self.replica, self.fence, self.incarnation

    @property
    def stem(self) -> str:
        """Of its file's name among those of the same replica; ordered as they are."""
        return f"{self.fence:04d}-{self.incarnation:04d}-{self.version:012d}"


@dataclass(frozen=True)
class Header:
    """Everything about a snapshot but its arrays; small enough to send anywhere."""

    id: SnapshotId
    schema: str
    """Digest of names, dtypes and shapes: readers refuse what their own model could not hold."""
    digest: str
    """Digest of the bytes (XXH3, 128 bits: guards against accidents, not against an adversary)."""
    num_bytes: int
    norm: float
    """Euclidean norm of all floating-point entries; not finite when any of them is not."""
    created_at: float
    """Seconds since the epoch, for people; nothing is decided by it."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Header:
        fields = {name: part for name, part in value.items() if name != "id"}
        return Header(id=SnapshotId(**value["id"]), **fields)


def schema_of(arrays: Arrays) -> str:
    """Digest of names, dtypes and shapes, in the order of the names."""
    text = "\n".join(f"{name} {a.dtype.str} {a.shape}" for name, a in sorted(arrays.items()))
    return xxhash.xxh3_128_hexdigest(text.encode())


def bytes_of(array: Array) -> memoryview:
    """The bytes of `array`, without a copy when it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def digest_of(arrays: Arrays) -> str:
    """Digest of all bytes, in the order of the names. Reads every byte once, copies none."""
    digest = xxhash.xxh3_128()
    for _, array in sorted(arrays.items()):
        digest.update(bytes_of(array))
    return digest.hexdigest()


def norm_of(arrays: Arrays) -> float:
    """Euclidean norm of all floating-point entries; NaN or infinite when any of them is."""
    return math.sqrt(sum(_sum_of_squares(name, array.reshape(-1)) for name, array in arrays.items()))


def _sum_of_squares(name: str, flat: Array) -> float:
    halves = name.endswith(BF16) or flat.dtype == np.float16
    if not halves and flat.dtype.kind != "f":
        return 0.0
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for begin in range(0, flat.size, _AT_ONCE if halves else max(flat.size, 1)):
            piece = flat if not halves else _widened(name, flat[begin : begin + _AT_ONCE])
            total += float(np.dot(piece, piece))
    return total


def _widened(name: str, halves: Array) -> Array:
    """As float32, exactly."""
    if name.endswith(BF16):
        return (halves.astype(np.uint32) << 16).view(np.float32)
    return halves.astype(np.float32)


@dataclass(frozen=True)
class Measures:
    """How snapshots of one kind are measured; neither function raises, whatever it is given."""

    schema: Callable[[Arrays], str]
    norm: Callable[[Arrays], float]


OF_WEIGHTS = Measures(schema_of, norm_of)


def header_of(snapshot: SnapshotId, arrays: Arrays, created_at: float, measures: Measures = OF_WEIGHTS) -> Header:
    """Measure `arrays` (two passes over the bytes) and describe them."""
    return Header(
        id=snapshot,
        schema=measures.schema(arrays),
        digest=digest_of(arrays),
        num_bytes=sum(a.nbytes for a in arrays.values()),
        norm=measures.norm(arrays),
        created_at=created_at,
    )
