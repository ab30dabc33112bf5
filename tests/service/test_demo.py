"""The demo ends what it started, also when it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.service.running import until, words


@pytest.mark.slow
def test_an_interrupted_demo_leaves_nothing_running(tmp_path: Path) -> None:
    environment = {**os.environ, "CODISTILL_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "jobs.cli", "demo", "--recipe", "digits"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = ""
    while "STARTING" not in said:
        line = process.stderr.readline()
        assert line, f"the demo ended by itself: {said}"
        said += line
    mine = [pid for pid in all_pids() if str(tmp_path) in environ(pid)]
    assert len(mine) > 5
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert time.monotonic() - began < 30
    until("nothing is left", lambda: not [pid for pid in mine if words(pid) != [""]], 5)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def environ(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""
