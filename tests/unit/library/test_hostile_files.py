"""Files that are programs, put where weights and checkpoints are read: refused, and never run."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from codistill import checkpoint
from codistill.checkpoint import Checkpoint
from codistill.data.home import DataError
from codistill.exchange.mapped_file import map_safetensors
from codistill.exported import exported_model
from codistill.recipes import open_recipe
from codistill.run_dir import read_json, write_json
from codistill.spec import OfJob
from tests.support import new_run, run_in_turns, small_spec


class Bomb:
    """Unpickled, it makes a directory."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self._place),)


def bombs(place: Path) -> dict[str, bytes]:
    """Files that make `place` when somebody opens them the wrong way."""
    pickled = pickle.dumps({"weight": Bomb(place)})
    saved = io.BytesIO()
    torch.save({"weight": Bomb(place)}, saved)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo("../../escaped")
        entry.size = len(pickled)
        tar.addfile(entry, io.BytesIO(pickled))
    return {"pickle": pickled, "torch.save": saved.getvalue(), "tar": packed.getvalue(), "empty": b"", "DCP": pickled}


def test_the_bombs_go_off(tmp_path: Path) -> None:
    pickle.loads(bombs(tmp_path / "went")["pickle"])
    assert (tmp_path / "went").is_dir()


KINDS = ["pickle", "torch.save", "tar", "empty", "DCP"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_checkpoint_is_a_program(kind: str, tmp_path: Path) -> None:
    """With a manifest that has the right digests of the wrong files."""
    went, place = tmp_path / "went", tmp_path / "checkpoints"
    saved = checkpoint.save(place, Checkpoint(1, 5, {"learner": {"a": torch.ones(2)}}, {"step": 5}))
    content = bombs(went)[kind]
    manifest = read_json(saved / "manifest.json")
    for path in [one for one in saved.iterdir() if one.name != "manifest.json"]:
        path.write_bytes(content)
        manifest["files"][path.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if kind == "DCP":
        (saved / ".metadata").write_bytes(content)
    write_json(saved / "manifest.json", manifest)
    with pytest.raises((OSError, ValueError)):
        checkpoint.load(place, 1, 5)
    assert checkpoint.load_newest(place, lambda name: True) is None
    assert not went.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_no_snapshot_of_a_peer_is_a_program(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "peer.safetensors"
    path.write_bytes(bombs(tmp_path / "went")[kind])
    with pytest.raises((OSError, ValueError)):
        map_safetensors(path)
    assert not (tmp_path / "went").exists()


def test_no_exported_teacher_is_a_program(tmp_path: Path) -> None:
    spec = small_spec(method={"kind": "solo"}, replicas={"count": 1}, training={"steps": 1})
    run = new_run(tmp_path, spec)
    run_in_turns(run)
    teacher, student = OfJob(job="job"), open_recipe(spec)
    exported_model(teacher, tmp_path, student)
    place = run.export("replica-0")
    for kind, content in bombs(tmp_path / "went").items():
        (place / "model.safetensors").write_bytes(content)
        with pytest.raises(DataError):
            exported_model(teacher, tmp_path, student)
        manifest = read_json(place / "manifest.json")
        manifest["sha256"]["model.safetensors"] = hashlib.sha256(content).hexdigest()
        write_json(place / "manifest.json", manifest)
        with pytest.raises(DataError, match=r"do not fit"):
            exported_model(teacher, tmp_path, student)
        assert not (tmp_path / "went").exists(), kind
