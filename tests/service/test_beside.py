"""`codistill serve --on`: a service on a cluster that was there before and stays when it goes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs import head as heads
from jobs import processes
from jobs.callers import Scope
from jobs.client import Client, ServiceRefused
from jobs.door import READS, DoorRules
from jobs.token_file import add_token
from tests.service.running import until
from tests.stores import new_store

pytestmark = [pytest.mark.slow]


def test_a_service_beside_a_cluster_goes_and_the_cluster_stays(tmp_path: Path) -> None:
    """Open to the network, and entered with a token that its store has from a file."""
    (tmp_path / "runs").mkdir()
    tokens, log, (port,) = tmp_path / "tokens", tmp_path / "serve.log", heads.free_ports(1)
    head = heads.start(tmp_path / "cluster", heads.HeadSize(cpus=1, object_store_bytes=100 << 20), http_port=0)
    own = {"CODISTILL_HOME": str(tmp_path / "home"), "CODISTILL_TOKENS_FILE": str(tokens)}
    own["CODISTILL_DATABASE"] = new_store(tmp_path)
    environment = {**os.environ, **heads.ray_environment(head), **own}
    environment.pop("RAY_AUTH_TOKEN", None)
    _, token = add_token(tokens, "ops", Scope.ADMIN, lifetime_s=3600)
    _, greedy = add_token(tokens, "ann", Scope.READ, lifetime_s=3600)
    words = [
        "serve",
        "--on",
        head.address,
        "--host",
        "0.0.0.0",
        "--port",
        str(port),
        "--storage",
        str(tmp_path / "runs"),
    ]
    with log.open("w") as file:
        command = [sys.executable, "-P", "-m", "jobs.cli", *words, "--storage", str(tmp_path / "runs")]
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        return "serves at" in log.read_text()

    try:
        until("the service is ready", ready, 90)
        with Client(f"http://127.0.0.1:{port}") as stranger, pytest.raises(ServiceRefused, match="token"):
            stranger.every()
        with Client(f"http://127.0.0.1:{port}", token=token) as client:
            assert client.every() == []
            slow_senders_hold_up_nobody(client, port)
            one_token_holds_up_nobody(client, port, greedy)
            who_asks_too_often_is_told_when_to_come_back(client)
        the_secret_is_nowhere(token[-43:], head, process.pid, tmp_path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
        assert heads.port_is_free(port)
        assert heads.is_alive(head)
    finally:
        process.kill()
        process.wait()
        assert heads.end(tmp_path / "cluster", head) > 0


def slow_senders_hold_up_nobody(client: Client, port: int) -> None:
    """200 connections, each with a request that never ends."""
    slow = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(200)]
    try:
        for number, one in enumerate(slow):
            length = f"Content-Length: {number + 9}\r\n\r\n{{" if number % 2 else "X-Slow: "
            one.sendall(f"POST /api/v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n{length}".encode())
        assert_answers(client)
    finally:
        for one in slow:
            one.close()


def one_token_holds_up_nobody(client: Client, port: int, token: str) -> None:
    """As many bodies that never end as it may send, and some more."""
    most = DoorRules.open_at_once
    head = f"POST /api/v1/jobs:validate HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    slow: list[socket.socket] = []
    try:
        for number in range(most + 10):
            slow.append(socket.create_connection(("127.0.0.1", port), timeout=20))
            slow[-1].sendall(head.encode())
            if number >= most:
                assert b" 429 " in slow[-1].recv(100)
            time.sleep(1.5 / READS.per_s)
        assert_answers(client)
        assert all(b" 408 " in one.recv(100) for one in slow[:most])
        with Client(client.url, token=token) as again:
            again.version()
    finally:
        for one in slow:
            one.close()


def assert_answers(client: Client) -> None:
    """Soon, each time."""
    took: list[float] = []
    for _ in range(20):
        began = time.monotonic()
        client.version()
        took.append(time.monotonic() - began)
    assert max(took) < 2.0, took


def who_asks_too_often_is_told_when_to_come_back(client: Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(client.version) for _ in range(200)]
    refused = [error for one in asked if (error := one.exception()) is not None]
    assert refused
    for error in refused:
        assert isinstance(error, ServiceRefused)
        assert (error.status, error.code) == (429, "too_many_requests")
        assert error.retry_after_s is not None
        assert error.retry_after_s >= 1


def the_secret_is_nowhere(secret: str, head: heads.Head, serving: int, place: Path) -> None:
    """Of a token in use: not in the store, the logs or Ray's own files, nor in any process' words or environment."""
    pids = {process.pid for process in processes.belonging(processes.snapshot(head.head_id))} | {serving}
    assert len(pids) > 5
    sources = [Path(f"/proc/{pid}/{name}") for pid in pids for name in ("environ", "cmdline")]
    sources += [path for root in (place, Path(head.temp_dir)) for path in root.rglob("*") if path.is_file()]
    looked_at = 0
    for path in sources:
        with contextlib.suppress(OSError):  # a process that has just ended
            content = path.read_bytes()
            looked_at += bool(content)
            assert secret.encode() not in content, path
    assert looked_at > len(pids)
