"""A replica's whole state on disk, all of it or none.

Files are written into a hidden directory, each with its size and SHA-256 in `manifest.json`, which is written last;
then the directory is renamed. What has no manifest is no checkpoint; what does not agree with its manifest is set aside
and the one before is taken. Tensors go into safetensors, all else into JSON: nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from codistill.compiler_absent import compiler_absent
from codistill.run_dir import RunDir, StorageError, read_json, write_json

log = logging.getLogger(__name__)

KEEP = 3


@dataclass(frozen=True)
class Checkpoint:
    """What a replica needs to go on as if nothing had happened."""

    fence: int
    step: int
    """Updates completed, over all phases."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """Named groups of tensors: `learner`, `optimizer.<group>`, `state` …"""
    values: Mapping[str, Any]
    """JSON values that belong to them."""


def save(directory: Path, checkpoint: Checkpoint, *, keep: int = KEEP) -> Path:
    """Write `checkpoint` under `directory` and drop all but the newest `keep`.

    Raises `StorageError` when the disk refuses; those before are then untouched.
    """
    name = _name(checkpoint.fence, checkpoint.step)
    final, temporary = directory / name, directory / f".{name}.{os.getpid()}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for group, tensors in checkpoint.tensors.items():
            # Own copies: safetensors refuses tensors that share memory, as tied weights do.
            save_file(
                {key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()},
                temporary / f"{group}.safetensors",
            )
        write_json(temporary / "values.json", checkpoint.values)
        files = {path.name: _fingerprint(path, sync=True) for path in sorted(temporary.iterdir())}
        write_json(temporary / "manifest.json", {"fence": checkpoint.fence, "step": checkpoint.step, "files": files})
        if final.exists():  # set aside earlier in this attempt as damaged, or written by an incarnation that then died
            shutil.rmtree(final)
        temporary.rename(final)
        _sync_directory(directory)
    except (OSError, SafetensorError, StorageError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(f"cannot write checkpoint {final}: {error}; is there room and permission?") from error
    for old in _names(directory)[:-keep]:
        shutil.rmtree(directory / old, ignore_errors=True)
    return final


def load_newest(directory: Path, readable: Callable[[str], bool]) -> Checkpoint | None:
    """The newest checkpoint that `readable` admits by name and that agrees with its manifest; None when there is none.

    A damaged one is renamed to `.damaged-…`, logged, and the one before is tried.
    """
    for name in reversed(_names(directory)):
        if not readable(name):
            continue
        try:
            return _load(directory / name)
        except (OSError, ValueError, KeyError, SafetensorError) as fault:
            log.warning("checkpoint %s is damaged and set aside: %s", directory / name, fault)
            shutil.rmtree(directory / f".damaged-{name}", ignore_errors=True)
            (directory / name).rename(directory / f".damaged-{name}")
    return None


def load(directory: Path, fence: int, step: int) -> Checkpoint:
    """One checkpoint and no other; raises `OSError` or `ValueError` when it is missing or damaged."""
    return _load(directory / _name(fence, step))


def readable_in(run: RunDir, fence: int, replica: str) -> Callable[[str], bool]:
    """Which checkpoints attempt `fence` may read: its own, and those that stood when it began.

    What a driver thought dead still writes afterwards is thereby never read.
    """
    inherited = {path.name for path in run.inherited("checkpoints", fence) if path.parent.name == replica}
    return lambda name: int(name.split("-")[0]) == fence or name in inherited


@compiler_absent()
def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors and JSON values."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            (tensors if isinstance(value, Tensor) else scalars)[f"{index}.{key}"] = value
    return tensors, {"scalars": scalars, "param_groups": state["param_groups"]}


@compiler_absent()
def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Restore what `pack_optimizer` gave."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **values["scalars"]}.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": values["param_groups"]})


def _name(fence: int, step: int) -> str:
    return f"{fence:04d}-{step:012d}"


def _load(path: Path) -> Checkpoint:
    manifest = read_json(path / "manifest.json")
    if manifest is None:
        raise ValueError("it has no manifest")
    for name, expected in manifest["files"].items():
        found = _fingerprint(path / name)
        if found != expected:
            raise ValueError(f"{name} should have {expected}, has {found}")
    try:
        tensors = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
    except SafetensorError as error:  # written by no replica, whatever its manifest says
        raise ValueError(f"it holds what is no safetensors: {error}") from error
    return Checkpoint(manifest["fence"], manifest["step"], tensors, read_json(path / "values.json") or {})


def _names(directory: Path) -> list[str]:
    """Names of committed checkpoints, oldest first: by fence, then by step."""
    return sorted(path.parent.name for path in directory.glob("[0-9]*/manifest.json"))


def _fingerprint(path: Path, *, sync: bool = False) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": digest}


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
