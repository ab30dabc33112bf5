"""What a run was made with, asked a second way; and what must not stand there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from codistill import environment
from codistill.environment import describe_environment, git_state, public_variables, write_environment
from tests.support import new_run, small_spec


def git(directory: Path, *words: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    return subprocess.run(
        ["git", *identity, "-C", str(directory), *words], check=True, capture_output=True, text=True
    ).stdout


def test_versions_seeds_digests_and_machine() -> None:
    found = describe_environment(small_spec(seed=7), data_digests={"digits": "ab12"})
    assert found["versions"]["numpy"] == numpy.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["seeds"]["job"] == 7
    assert found["data_digests"] == {"digits": "ab12"}
    assert found["machine"]["host"] == socket.gethostname()
    total_kib = int(Path("/proc/meminfo").read_text().partition("MemTotal:")[2].split()[0])
    assert found["machine"]["memory_bytes"] == pytest.approx(total_kib * 1024, rel=0.01)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_package_that_is_not_installed_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package"))
    versions = describe_environment(small_spec(), data_digests={})["versions"]
    assert versions["no-such-package"] is None
    assert set(versions) == {"python", "numpy", "no-such-package"}


def test_commit_and_changes_of_a_repository(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) is None  # nothing committed yet
    (tmp_path / "a.txt").write_text("one")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-qm", "first")
    git(tmp_path, "remote", "add", "origin", "https://me:hunter2@example.org/x.git")
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "a.txt").write_text("two")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}
    git(tmp_path, "checkout", "-q", "a.txt")
    (tmp_path / "new.txt").write_text("unknown to git")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}


@pytest.mark.parametrize("script", [None, "#!/bin/sh\nexec sleep 60\n", "#!/bin/sh\nexit 3\n"])
def test_git_that_is_absent_slow_or_broken_is_null(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    monkeypatch.setattr(environment, "GIT_TIMEOUT_S", 0.3)
    repository = tmp_path / "repository"
    repository.mkdir()
    git(repository, "init", "-q")
    git(repository, "commit", "-q", "--allow-empty", "-m", "first")
    assert git_state(repository) is not None
    if script is not None:
        (tmp_path / "git").write_text(script)
        (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if script else str(tmp_path))
    assert git_state(repository) is None


def test_only_variables_of_known_prefixes_and_no_secrets() -> None:
    shown, withheld = public_variables(
        {
            "OMP_NUM_THREADS": "2",
            "NCCL_DEBUG": "INFO",
            "HOME": "/home/me",
            "AWS_SECRET_ACCESS_KEY": "s1",
            "TORCH_HUB_TOKEN": "s2",
            "CUDA_PROXY": "http://me:s3@example.org/",
            "torch_lower": "x",
        }
    )
    assert shown == {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "2"}
    assert withheld == ["CUDA_PROXY", "TORCH_HUB_TOKEN"]


def test_a_secret_never_reaches_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCH_API_KEY", "WANDB_API_KEY", "PYTORCH_PASSWORD", "CUDA_AUTH"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run = new_run(tmp_path, small_spec())
    path = write_environment(run, 1, run.read_spec(), data_digests={})
    assert path == run.root / "attempts" / "1" / "environment.json"
    assert "hunter2" not in path.read_text()
    assert json.loads(path.read_text())["variables"]["OMP_NUM_THREADS"] == "3"


def test_it_is_written_once_per_attempt(tmp_path: Path) -> None:
    run = new_run(tmp_path, small_spec())
    path = write_environment(run, 1, run.read_spec(), data_digests={"digits": "first"})
    before = path.read_bytes()
    write_environment(run, 1, run.read_spec(), data_digests={"digits": "second"})
    assert path.read_bytes() == before
    assert os.listdir(path.parent).count("environment.json") == 1
    second = write_environment(run, 2, run.read_spec(), data_digests={"digits": "second"})
    assert json.loads(second.read_text())["data_digests"] == {"digits": "second"}


def test_it_needs_no_torch() -> None:
    code = "import sys, codistill.environment; print('torch' in sys.modules, 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
