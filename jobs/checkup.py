"""Whether a machine has what training and a service need: what was measured, judged. Pure; nothing is measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

GIB = 1 << 30
MIN_PYTHON = (3, 11)
RAY_SERIES = "2.60"
SHM_WANTED_BYTES = 1 << 30
"""What `codistill serve` gives the object store; with less shared memory Ray writes to the disk instead."""
DISK_WANTED_BYTES = 5 * GIB
MEMORY_PER_RANK_BYTES = 1 << 30
"""What a rank's process takes before its model: torch, Ray's worker, and batches of the small recipes."""


class Grade(StrEnum):
    """How well it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line of a check-up."""

    grade: Grade
    about: str
    fact: str
    remedy: str = ""
    """What to do; empty when all is well."""


def judge_python(version: tuple[int, ...]) -> Finding:
    fact = ".".join(map(str, version[:3]))
    if version[:2] < MIN_PYTHON:
        return Finding(Grade.FAIL, "python", fact, "install Python 3.11 or newer")
    return Finding(Grade.OK, "python", fact)


def judge_versions(versions: Mapping[str, str | None], *, needs_postgres: bool) -> list[Finding]:
    """`versions` maps distributions to what is installed, None when they are not."""
    found: list[Finding] = []
    for name in ("codistill", "torch"):
        version = versions.get(name)
        grade = Grade.OK if version else Grade.FAIL
        found.append(Finding(grade, name, version or "not installed", "" if version else "pip install codistill"))
    ray = versions.get("ray")
    install = "pip install 'codistill[cluster]'"
    if ray is None:
        found.append(Finding(Grade.WARN, "ray", "not installed: no service, no cluster", f"for both: {install}"))
    elif not ray.startswith(f"{RAY_SERIES}."):
        found.append(Finding(Grade.FAIL, "ray", f"{ray}, made for {RAY_SERIES}", install))
    else:
        found.append(Finding(Grade.OK, "ray", ray))
    if needs_postgres:
        driver = versions.get("psycopg")
        remedy = "" if driver else "pip install 'codistill[postgres]'"
        found.append(Finding(Grade.OK if driver else Grade.FAIL, "psycopg", driver or "not installed", remedy))
    return found


def judge_port(port: int, *, free: bool, ours: bool) -> Finding:
    """Whether a service can listen at `port` of this machine, or does so already."""
    if ours:
        return Finding(Grade.OK, "port", f"{port}: a codistill service answers")
    if free:
        return Finding(Grade.OK, "port", f"{port} is free for codistill serve")
    return Finding(Grade.WARN, "port", f"{port} is in use by something else", "codistill serve --port ANOTHER")


def judge_shared_memory(total_bytes: int | None) -> Finding:
    if total_bytes is None:
        return Finding(Grade.WARN, "shared memory", "no /dev/shm", "use Linux for a service; codistill run needs none")
    fact = f"{total_bytes / GIB:.1f} GiB"
    if total_bytes < SHM_WANTED_BYTES:
        remedy = "in a container: --shm-size=2g, or an emptyDir of medium Memory at /dev/shm"
        return Finding(Grade.WARN, "shared memory", fact, remedy)
    return Finding(Grade.OK, "shared memory", fact)


def judge_storage(path: str, problem: str | None, free_bytes: int | None, file_system: str | None) -> Finding:
    """`problem` says why jobs cannot be written to `path`."""
    if problem is not None:
        return Finding(Grade.FAIL, "storage", problem, "mend it, or name another with --storage")
    fact = f"{path}: {(free_bytes or 0) / GIB:.1f} GiB free"
    if file_system == "tmpfs":
        return Finding(Grade.WARN, "storage", f"{fact}, in memory", "name a directory on a disk with --storage")
    if (free_bytes or 0) < DISK_WANTED_BYTES:
        return Finding(Grade.WARN, "storage", fact, "codistill prune --delete removes what old jobs left")
    return Finding(Grade.OK, "storage", f"{fact}; on a cluster every node must see it")


def judge_gpus(devices: int, visible: int | None) -> Finding:
    """`devices` are in the machine; `visible` to torch, None when torch could not be asked."""
    if visible is None:
        return Finding(Grade.FAIL, "gpu", "torch does not start", "python -c 'import torch' says why")
    if visible < devices:
        fact = f"{devices} in the machine, torch sees {visible}"
        remedy = "install a CUDA build of torch that fits the driver, and look at CUDA_VISIBLE_DEVICES"
        return Finding(Grade.WARN, "gpu", fact, remedy)
    return Finding(Grade.OK, "gpu", f"{visible}" if visible else "none; everything runs on CPUs")


def judge_database(place: str, problem: str | None) -> Finding:
    if problem is not None:
        return Finding(Grade.FAIL, "database", problem, "CODISTILL_DATABASE names another")
    return Finding(Grade.OK, "database", place)


def judge_room(cpus: int, gpus: int, memory_bytes: int | None) -> Finding:
    """How many replicas of one CPU each fit at once."""
    by_memory = cpus if memory_bytes is None else int(memory_bytes / MEMORY_PER_RANK_BYTES)
    ranks = min(cpus, by_memory)
    memory = "" if memory_bytes is None else f", {memory_bytes / GIB:.1f} GiB of memory free"
    fact = f"{cpus} CPUs, {gpus} GPUs{memory}: {ranks} small replicas of one CPU at once"
    if ranks < 2:
        return Finding(Grade.WARN, "room", fact, "two replicas share a CPU with replicas.cpus = 0.5")
    return Finding(Grade.OK, "room", fact)


def worst(findings: Sequence[Finding]) -> Grade:
    order = list(Grade)
    return max((finding.grade for finding in findings), key=order.index, default=Grade.OK)
