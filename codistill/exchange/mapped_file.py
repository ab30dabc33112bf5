"""Safetensors files written from views and mapped back: one copy to write, none to read."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from codistill.exchange.snapshot import Array, Arrays, bytes_of

_TO_SAFETENSORS = {
    "<f8": "F64", "<f4": "F32", "<f2": "F16", "<i8": "I64", "<i4": "I32", "<i2": "I16", "|i1": "I8",
    "<u8": "U64", "<u4": "U32", "<u2": "U16", "|u1": "U8", "|b1": "BOOL",
}  # fmt: skip
_FROM_SAFETENSORS = {name: np.dtype(code) for code, name in _TO_SAFETENSORS.items()}


def write_safetensors(path: Path, arrays: Arrays) -> None:
    """Write `arrays` as safetensors, straight from their own memory (the library's writer copies them first)."""
    table: dict[str, Any] = {}
    offset = 0
    # Largest items first, so that every array starts at a multiple of its item size.
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    for name, array in ordered:
        code = _TO_SAFETENSORS[array.dtype.str]
        table[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    head = json.dumps(table).encode()
    head += b" " * (-(8 + len(head)) % 64)
    with path.open("wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for _, array in ordered:
            _write_all(file, bytes_of(array))


def _write_all(file: Any, view: memoryview) -> None:
    while len(view):
        view = view[file.write(view) :]


def map_safetensors(path: Path) -> dict[str, Array]:
    """Read-only views of a safetensors file mapped into memory. Raises `OSError` or `ValueError` for a bad file."""
    with pa.memory_map(str(path), "r") as source:
        buffer = source.read_buffer()
    if buffer.size < 8:
        raise ValueError(f"{path} is torn: {buffer.size} bytes")
    (length,) = struct.unpack("<Q", buffer.slice(0, 8).to_pybytes())
    if 8 + length > buffer.size:
        raise ValueError(f"{path} is torn: its table of {length} bytes ends after the file")
    views: dict[str, Array] = {}
    for name, entry in json.loads(buffer.slice(8, length).to_pybytes()).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if 8 + length + end > buffer.size:
            raise ValueError(f"{path} is torn: {name} ends after the file")
        dtype = _FROM_SAFETENSORS[entry["dtype"]]
        count = (end - begin) // dtype.itemsize
        views[name] = np.frombuffer(buffer, dtype, count, 8 + length + begin).reshape(entry["shape"])
    return views
