"""One service per home, and which of them `codistill down` ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs import head as heads
from jobs.cli import down
from jobs.errors import HeadError
from jobs.one_service import NO_CLUSTER, OWN_HEAD, Holder, holder, only_one
from tests.unit.jobs.conftest import Call

Hold = Callable[[str], subprocess.Popen[bytes]]
HOLDS = """
import sys, time
from pathlib import Path
from jobs.one_service import only_one
with only_one(Path(sys.argv[1]), sys.argv[2]):
    print("up", flush=True)
    time.sleep(60)
"""


def test_one_service_per_home(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with only_one(tmp_path, "head:6379"):
        assert holder(tmp_path) == Holder(os.getpid(), "head:6379")
        with pytest.raises(HeadError, match="is running already"), only_one(tmp_path, OWN_HEAD):
            pass
        assert holder(tmp_path) == Holder(os.getpid(), "head:6379")
    assert holder(tmp_path) is None
    with only_one(tmp_path, OWN_HEAD):
        assert holder(tmp_path) == Holder(os.getpid(), OWN_HEAD)


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """A process in the place of the command that serves."""
    children: list[subprocess.Popen[bytes]] = []

    def start(cluster: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", HOLDS, str(tmp_path / "home"), cluster]
        children.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        assert children[-1].stdout is not None
        assert children[-1].stdout.readline() == b"up\n"
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


@pytest.mark.parametrize(
    ("cluster", "ends", "says"),
    [
        (OWN_HEAD, True, "ended 1 processes"),
        ("127.0.0.1:1", True, "ended 1 processes"),
        ("head:6379", False, "the service on the cluster at head:6379 is left alone"),
        (NO_CLUSTER, False, "ended 0 processes"),
    ],
)
def test_down_ends_what_served_from_its_head(
    hold: Hold, call_at_home: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str, ends: bool, says: str
) -> None:
    monkeypatch.setattr(down, "SERVE_ENDS_WITHIN_S", 0.2)
    home, mark = tmp_path / "home", f"test-{os.getpid()}"
    heads.remember(home, heads.Head(mark, "127.0.0.1:1", "http://127.0.0.1:2", "", str(tmp_path / "ray"), 3))
    child = hold(cluster)
    code, _, err = call_at_home("down", "--yes")
    assert (code, says in err) == (0, True)
    assert heads.remembered(home) is None
    if ends:
        assert child.wait(5) == -9
    else:
        assert child.poll() is None
        assert holder(home) == Holder(child.pid, cluster)
