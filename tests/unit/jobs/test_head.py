"""Which processes belong to a head, and that ending it ends these and no others."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import head, processes
from jobs.errors import HeadError
from jobs.processes import Process, belonging


def process(pid: int, parent: int = 1, session: int = 0, marked: bool = False) -> Process:
    return Process(pid, parent, session or pid, "x", marked)


def test_who_belongs_is_found_by_mark_session_and_descent() -> None:
    everything = [
        process(10, marked=True),
        process(11, session=10),  # lost its mark, kept its session
        process(12, parent=11),  # lost both, has its parent
        process(13, parent=12),
        process(14, marked=True),  # lost its parent and its session, kept the mark
        process(20),
        process(21, parent=20),
    ]
    assert [p.pid for p in belonging(everything)] == [10, 11, 12, 13, 14]
    assert belonging([process(20), process(21, parent=20)]) == []


def test_this_process_never_belongs() -> None:
    assert belonging([process(os.getpid(), marked=True)]) == []


SLEEPER = "import signal, time, sys\nif 'deaf' in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"


def start(mark: str | None, *words: str, program: str = "") -> subprocess.Popen[bytes]:
    environment = {**os.environ, **({processes.MARK: mark} if mark else {})}
    command = [sys.executable, "-S", "-c", SLEEPER + program + "print('up', flush=True); time.sleep(60)", *words]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    return child


def test_ending_takes_the_deaf_and_the_orphans_and_nobody_else() -> None:
    mark = f"test-{os.getpid()}"
    fork = "import os\npid = os.fork()\nif pid: open(sys.argv[1], 'w').write(str(pid)) and os._exit(0)\nos.setsid()\n"
    orphan_file = Path(f"/tmp/{mark}-orphan")
    mine = [start(mark), start(mark, "deaf"), start(mark, str(orphan_file), program=fork)]
    stranger, other = start(None), start("another-mark")
    try:
        began = time.monotonic()
        assert processes.end(mark, first=lambda _: False, patience_s=0.5) >= 3
        assert time.monotonic() - began < 5
        for child in mine:
            child.wait(5)
        assert mine[1].returncode == -9
        assert belonging(processes.snapshot(mark)) == []
        orphan = int(orphan_file.read_text())
        assert [p for p in processes.snapshot(mark) if p.pid == orphan] == []
        assert stranger.poll() is None
        assert other.poll() is None
    finally:
        orphan_file.unlink(missing_ok=True)
        for child in (*mine, stranger, other):
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()


def test_a_head_that_does_not_start_says_why_and_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'nothing works today' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(HeadError, match="the Ray head did not start: nothing works today"):
        head.start(tmp_path / "home", head.HeadSize(1.0), http_port=1)
    assert head.remembered(tmp_path / "home") is None
    assert (tmp_path / "home" / "service" / "token").stat().st_mode & 0o777 == 0o600


def test_a_head_is_remembered_whole(tmp_path: Path) -> None:
    made = head.Head("id", "127.0.0.1:1", "http://127.0.0.1:2", "/token", "/temp", 3, (4, 5))
    head.remember(tmp_path, made)
    assert head.remembered(tmp_path) == made
    assert not head.is_alive(made)


def test_ports() -> None:
    assert len(set(head.free_ports(5))) == 5
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not head.port_is_free(taken.getsockname()[1])
