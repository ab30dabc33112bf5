"""Who imports whom, in fresh interpreters: a service without torch, a library without Ray."""

from __future__ import annotations

import subprocess
import sys

import pytest

NO_TORCH = [
    "codistill", "codistill.spec", "codistill.spec_errors", "codistill.run_dir", "codistill.records",
    "codistill.capacity", "codistill.compare", "codistill.outcome", "codistill.progress", "codistill.local",
    "codistill.environment", "codistill.mirror", "codistill.trackers",
    "codistill.data.catalog", "codistill.data.sources", "codistill.data.writing", "codistill.data.layouts",
]  # fmt: skip
LIBRARY = ["codistill.replica", "codistill.methods", "codistill.exchange.mailbox"]
SERVICE = ["jobs.cli", "jobs.routes", "jobs.store", "jobs.manager", "jobs.client"]


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", NO_TORCH)
def test_what_a_service_reads_needs_no_torch(module: str) -> None:
    assert not loaded_by(module) & {"torch", "ray", "jobs", "cluster"}


@pytest.mark.parametrize("module", LIBRARY)
def test_the_library_needs_no_ray(module: str) -> None:
    loaded = loaded_by(module)
    assert "torch" in loaded
    assert not loaded & {"ray", "jobs", "cluster"}


@pytest.mark.parametrize("module", SERVICE)
def test_the_service_needs_no_torch(module: str) -> None:
    assert not loaded_by(module) & {"torch", "cluster"}


def test_the_command_line_starts_without_ray() -> None:
    assert not loaded_by("jobs.cli") & {"ray", "sqlalchemy", "torch"}
