"""Where everything a job writes lives, and the only thing the service reads back.

    <storage>/<job id>/
      spec.json  format_version  lineage.json
      attempts/<fence>/attempt.json  environment.json  result.json
      attempts/<fence>/replicas/<replica>/  heartbeat.json  incarnation  metrics/  ledger/  logs/  predictions/
      checkpoints/<replica>/<fence>-<step>/
      exchange/<replica>/  snapshots/<replica>/
      export/<replica>/

Paths are built here, from ids that have been checked; none is ever taken from a user.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from codistill.spec import JobSpec
from codistill.spec_errors import parse_spec

FORMAT_VERSION = 1
RECORD_KINDS = ("metrics", "ledger")
INHERITED_FENCE = 0
"""Of what a job was given by the one that it goes on from; its own attempts count from 1."""
ID_PATTERN = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")


class StorageError(RuntimeError):
    """The storage cannot be used: missing, full, not writable, or of another format."""


def checked_id(value: str) -> str:
    """`value` if it is an id (lower-case letters, digits, hyphens; at most 63); raises `ValueError` otherwise."""
    if not ID_PATTERN.match(value) or "\n" in value:
        raise ValueError(f"{value!r} is not an id; ids match {ID_PATTERN.pattern}")
    return value


def write_json(path: Path, value: Any, *, durable: bool = True, indent: int | None = 1) -> None:
    """Replace `path` by `value` as JSON, whole or not at all: a reader sees the old text or the new.

    `durable` waits until the disk has it, so that it outlives a loss of power. Raises `StorageError` when
    the disk refuses, `ValueError` for NaN or infinity, which are not JSON.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w") as file:
            json.dump(value, file, indent=indent, sort_keys=True, allow_nan=False)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror or error}; is there room and permission?") from error


def read_json(path: Path) -> Any | None:
    """The JSON value in `path`, or None when there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class RunDir:
    """The run directory of one job."""

    storage: Path
    job_id: str

    def __post_init__(self) -> None:
        checked_id(self.job_id)

    @property
    def root(self) -> Path:
        return self.storage / self.job_id

    def attempt(self, fence: int) -> Path:
        return self.root / "attempts" / str(fence)

    def replica(self, fence: int, replica: str) -> Path:
        return self.attempt(fence) / "replicas" / checked_id(replica)

    def heartbeat(self, fence: int, replica: str) -> Path:
        return self.replica(fence, replica) / "heartbeat.json"

    def logs(self, fence: int, replica: str) -> Path:
        """The directory of a replica's log files, one per incarnation, oldest first by name."""
        return self.replica(fence, replica) / "logs"

    @property
    def estimate(self) -> Path:
        """What the service told of the job's price, before it began."""
        return self.root / "estimate.json"

    def result(self, fence: int) -> Path:
        return self.attempt(fence) / "result.json"

    def checkpoints(self, replica: str) -> Path:
        return self.root / "checkpoints" / checked_id(replica)

    def exchange(self, replica: str) -> Path:
        return self.root / "exchange" / checked_id(replica)

    def snapshots(self, replica: str) -> Path:
        """Every snapshot that a replica announced, where `exchange.keep_snapshots` asks for that."""
        return self.root / "snapshots" / checked_id(replica)

    def export(self, replica: str) -> Path:
        return self.root / "export" / checked_id(replica)

    # ---- the job as a whole

    def create(self, spec: JobSpec) -> None:
        """Make the directory and write the spec into it.

        Doing so again with the same spec changes nothing. Raises `StorageError` when the storage is missing, full or
        not writable, or holds another spec under this id.
        """
        if not self.storage.is_dir():
            raise StorageError(f"storage {self.storage} does not exist; create it, or name another directory")
        existing = self.root / "spec.json"
        if existing.exists():
            if self.read_spec() != spec:
                raise StorageError(f"{self.root} already holds a job with another spec; choose another name")
            return
        write_json(self.root / "format_version", FORMAT_VERSION)
        write_json(existing, spec.model_dump(mode="json"))

    def read_spec(self) -> JobSpec:
        """The job's spec; raises `StorageError` when it is missing or the directory has another format."""
        version, spec = read_json(self.root / "format_version"), read_json(self.root / "spec.json")
        if spec is None:
            raise StorageError(f"{self.root} holds no job (no spec.json); name another directory")
        if version != FORMAT_VERSION:
            raise StorageError(
                f"{self.root} has format {version}; this version reads format {FORMAT_VERSION}:"
                " use the one that wrote it"
            )
        return parse_spec(spec)

    def fences(self) -> list[int]:
        """The fences of all attempts so far, ascending."""
        attempts = self.root / "attempts"
        if not attempts.is_dir():
            return []
        return sorted(int(entry.name) for entry in attempts.iterdir() if entry.name.isdigit())

    def start_attempt(self, fence: int, started_at: float) -> None:
        """Record that a driver has begun attempt `fence`, and what stands at that moment: checkpoints and records.

        What an older attempt writes afterwards is thereby never read. Raises `StorageError` when this fence was used
        already or a newer one exists.
        """
        taken = self.fences()
        if taken and taken[-1] >= fence:
            raise StorageError(
                f"attempt {fence} of {self.job_id} may not start: attempt {taken[-1]} exists already; use a later fence"
            )
        manifests = self.root.glob("checkpoints/*/[0-9]*/manifest.json")
        records = [path for kind in RECORD_KINDS for path in self.root.glob(f"attempts/*/replicas/*/{kind}/[!.]*")]
        inherited = {
            "checkpoints": sorted(str(path.parent.relative_to(self.root)) for path in manifests),
            "records": sorted(str(path.relative_to(self.root)) for path in records),
        }
        write_json(self.attempt(fence) / "attempt.json", {"started_at": started_at, "inherited": inherited})

    def inherited(self, kind: Literal["checkpoints", "records"], fence: int) -> set[Path]:
        """Paths of what stood when attempt `fence` began; empty when it did not begin."""
        attempt = read_json(self.attempt(fence) / "attempt.json")
        return set() if attempt is None else {self.root / path for path in attempt["inherited"][kind]}

    def superseded(self, fence: int) -> bool:
        """Whether a newer attempt has begun: then nobody reads any more what this one writes."""
        return (self.fences() or [fence])[-1] > fence

    def clear_exchange(self) -> None:
        """Drop the snapshots that replicas left for each other; of no use once all have ended well."""
        shutil.rmtree(self.root / "exchange", ignore_errors=True)

    def next_incarnation(self, fence: int, replica: str) -> int:
        """Count one more start of `replica` in this attempt; 0 for the first."""
        path = self.replica(fence, replica) / "incarnation"
        last = read_json(path)
        incarnation = 0 if last is None else int(last) + 1
        write_json(path, incarnation)
        return incarnation

    def read_heartbeats(self, fence: int) -> dict[str, dict[str, Any]]:
        """The newest heartbeat of every replica of an attempt, by replica name. One that cannot be read just now, since
        another node is putting the next in its place, is left out: whoever reads it, reads it again."""
        beats: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError):
            for entry in sorted((self.attempt(fence) / "replicas").iterdir()):
                with contextlib.suppress(OSError):
                    if (beat := read_json(entry / "heartbeat.json")) is not None:
                        beats[entry.name] = beat
        return beats

    def request_stop(self, fence: int) -> None:
        """Ask every replica of the attempt to write a last checkpoint and end."""
        write_json(self.attempt(fence) / "stop", {"requested_at": time.time()})

    def stop_requested(self, fence: int) -> bool:
        """As far as can be seen just now."""
        try:
            return (self.attempt(fence) / "stop").exists()
        except OSError:
            return False

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.storage).free
