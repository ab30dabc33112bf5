"""What a run was made with: versions, git state, seeds, digests of the data, the machine. Imports no torch.

Versions come from the metadata of installed packages, so nothing is imported to ask it. Of environment variables only
those stand here whose names begin with one of `PREFIXES`; what looks like a secret is named, never shown.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from codistill.run_dir import RunDir, write_json
from codistill.spec import JobSpec

FORMAT_VERSION = 1
PACKAGES = (
    "codistill", "torch", "ray", "numpy", "pyarrow", "pydantic", "safetensors", "xxhash", "scipy", "scikit-learn",
    "tensorboardX", "mlflow-skinny", "wandb", "matplotlib", "transformers",
)  # fmt: skip
PREFIXES = ("OMP_", "MKL_", "NCCL_", "GLOO_", "CUDA_", "TORCH_", "PYTORCH_")
GIT_TIMEOUT_S = 5.0
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASS|KEY|CREDENTIAL|AUTH", re.IGNORECASE)
_USER_IN_URL = re.compile(r"://[^/\s]*@")


def describe_environment(spec: JobSpec, *, data_digests: Mapping[str, str]) -> dict[str, Any]:
    """The content of `environment.json`. What cannot be found out is null; asking git takes at most a few seconds.

    `data_digests` maps names of data sets to their digests.
    """
    variables, withheld = public_variables(os.environ)
    return {
        "format_version": FORMAT_VERSION,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git": git_state(Path.cwd()),
        "seeds": {"job": spec.seed, "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED")},
        "data_digests": dict(data_digests),
        "machine": machine(),
        "variables": variables,
        "variables_withheld": withheld,
    }


def write_environment(run: RunDir, fence: int, spec: JobSpec, *, data_digests: Mapping[str, str]) -> Path:
    """Write `attempts/<fence>/environment.json`, unless a replica of the attempt has done so; its path.

    Raises `StorageError` when the disk refuses.
    """
    path = run.attempt(fence) / "environment.json"
    if not path.exists():
        write_json(path, describe_environment(spec, data_digests=data_digests))
    return path


def public_variables(variables: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Those of the known prefixes that may be shown; and the names of those that look like secrets."""
    known = {name: value for name, value in sorted(variables.items()) if name.startswith(PREFIXES)}
    secret = [name for name, value in known.items() if _SECRET_NAME.search(name) or _USER_IN_URL.search(value)]
    return {name: value for name, value in known.items() if name not in secret}, secret


def git_state(directory: Path) -> dict[str, Any] | None:
    """Commit, and whether anything differs from it (files that git does not know included); None outside a repository,
    without git, or when it takes too long. The address of a remote may hold a password and is left out."""
    commit = _git(directory, "rev-parse", "--verify", "HEAD")
    changes = None if commit is None else _git(directory, "status", "--porcelain")
    if commit is None or changes is None:
        return None
    return {"commit": commit.strip(), "dirty": bool(changes.strip())}


def machine() -> dict[str, Any]:
    """Host, operating system, processor, memory, accelerators."""
    return {
        "host": platform.node(),
        "os": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_bytes": _memory_bytes(),
        "gpus": _gpu_models(),
        "gpu_driver": _first_line(Path("/proc/driver/nvidia/version")),
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(directory: Path, *arguments: str) -> str | None:
    # Neither a lock in somebody's repository nor a program that its configuration names.
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _cpu_model() -> str | None:
    found = _lines_after(Path("/proc/cpuinfo"), "model name")
    return found[0] if found else platform.processor() or None


def _gpu_models() -> list[str]:
    """Models of NVIDIA's devices, as their driver tells; empty where there is no such driver."""
    devices = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return [model for device in devices for model in _lines_after(device, "Model")]


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _lines_after(path: Path, key: str) -> list[str]:
    """The values of every `key : value` in a file; none when it cannot be read."""
    try:
        pairs = [line.partition(":") for line in path.read_text().splitlines()]
    except OSError:
        return []
    return [value.strip() for name, _, value in pairs if name.strip() == key]


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text().partition("\n")[0].strip() or None
    except OSError:
        return None
