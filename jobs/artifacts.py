"""What a job leaves for others to take away: a listing, and nothing outside it.

Names are made here, from places that are known; a name that is asked for is looked up among them and never becomes a
path. Checkpoints, snapshots and logs are not among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codistill.run_dir import RECORD_KINDS, RunDir, read_json

_MEDIA_TYPES = {
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".parquet": "application/vnd.apache.parquet",
}


@dataclass(frozen=True)
class Artifact:
    """A file that may be taken away."""

    name: str
    """E.g. `export/replica-0/model.safetensors`, `attempt-1/metrics/replica-0.parquet`."""
    path: Path
    num_bytes: int
    sha256: str | None
    """Where it was written down when the file was made."""

    @property
    def media_type(self) -> str:
        return _MEDIA_TYPES.get(self.path.suffix, "application/octet-stream")

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "bytes": self.num_bytes, "sha256": self.sha256, "media_type": self.media_type}


def artifacts_of(run: RunDir, replicas: Sequence[str]) -> dict[str, Artifact]:
    """All artifacts of a job with these replicas, by name, in the order of names."""
    found = [*_exported(run, replicas), *_of_attempts(run, replicas)]
    kept = {name: _artifact(name, path, digest, run.root) for name, path, digest in found}
    return {name: one for name, one in sorted(kept.items()) if one is not None}


def _exported(run: RunDir, replicas: Sequence[str]) -> Iterator[tuple[str, Path, str | None]]:
    for replica in replicas:
        directory = run.export(replica)
        digests: Mapping[str, str] = (read_json(directory / "manifest.json") or {}).get("sha256", {})
        for path in _files(directory, "[!.]*"):
            yield f"export/{replica}/{path.name}", path, digests.get(path.name)


def _of_attempts(run: RunDir, replicas: Sequence[str]) -> Iterator[tuple[str, Path, None]]:
    for fence in run.fences():
        attempt, here = run.attempt(fence), f"attempt-{fence}"
        for name in ("environment.json", "result.json"):
            yield f"{here}/{name}", attempt / name, None
        for replica in replicas:
            directory = run.replica(fence, replica)
            for kind in RECORD_KINDS:
                yield f"{here}/{kind}/{replica}.parquet", directory / kind / "all.parquet", None
            for path in _files(directory / "predictions", "[!.]*.parquet"):
                yield f"{here}/predictions/{replica}/{path.name}", path, None


def _files(directory: Path, pattern: str) -> list[Path]:
    return sorted(directory.glob(pattern))


def _artifact(name: str, path: Path, sha256: str | None, root: Path) -> Artifact | None:
    """None for what is no file of the run directory `root`: links from there on lead elsewhere. Those above it say
    where the operator has put the storage."""
    if root.is_symlink() or path.resolve() != root.resolve() / path.relative_to(root):
        return None
    try:
        return Artifact(name, path, path.stat().st_size, sha256) if path.is_file() else None
    except FileNotFoundError:  # the job has just been deleted
        return None
