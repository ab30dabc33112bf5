"""Who imports whom, in fresh interpreters: a service without torch, a library without Ray."""

from __future__ import annotations

import subprocess
import sys

from codistill.local_rank import PRELOADED_FOR_RANKS

NO_TORCH = [
    "codistill", "codistill.spec", "codistill.spec_errors", "codistill.run_dir", "codistill.records",
    "codistill.capacity", "codistill.compare", "codistill.outcome", "codistill.progress", "codistill.local",
    "codistill.environment", "codistill.mirror", "codistill.trackers",
    "codistill.data.catalog", "codistill.data.sources", "codistill.data.writing", "codistill.data.layouts",
]  # fmt: skip
LIBRARY = ["codistill.replica", "codistill.methods", "codistill.exchange.mailbox"]
SERVICE = ["jobs.cli", "jobs.routes", "jobs.store", "jobs.manager", "jobs.client"]


def loaded_by(*modules: str) -> dict[str, set[str]]:
    """What a fresh interpreter has loaded after each of the modules, imported one after another."""
    show = "print(*(name for name in sys.modules if '.' not in name))"
    code = "\n".join(["import sys", *(f"import {module}\n{show}" for module in modules)])
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {module: set(line.split()) for module, line in zip(modules, done.stdout.splitlines(), strict=True)}


def test_what_a_service_reads_needs_no_torch() -> None:
    for module, loaded in loaded_by(*NO_TORCH).items():
        assert not loaded & {"torch", "ray", "jobs", "cluster"}, module


def test_the_library_needs_no_ray() -> None:
    for module, loaded in loaded_by(*LIBRARY).items():
        assert "torch" in loaded, module
        assert not loaded & {"ray", "jobs", "cluster"}, module


def test_what_replicas_are_forked_from_asks_for_no_gpu() -> None:
    """A fork of a process that has asked the driver could not use one."""
    asks = "is_available", "device_count", "current_device", "_lazy_init"
    code = f"""
import torch
def asked(*_, **__): raise AssertionError("the GPU was asked for")
for name in {asks}: assert callable(getattr(torch.cuda, name)); setattr(torch.cuda, name, asked)
import {", ".join(PRELOADED_FOR_RANKS)}
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_service_needs_no_torch() -> None:
    for module, loaded in loaded_by(*SERVICE).items():
        assert not loaded & {"torch", "cluster"}, module


def test_the_command_line_starts_without_ray() -> None:
    assert not loaded_by("jobs.cli")["jobs.cli"] & {"ray", "sqlalchemy", "torch"}
