"""`codistill serve --on`: a service on a cluster that was there before and stays when it goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import head as heads
from jobs.callers import Scope
from jobs.client import Client, ServiceRefused
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
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
        assert heads.port_is_free(port)
        assert heads.is_alive(head)
    finally:
        process.kill()
        process.wait()
        assert heads.end(tmp_path / "cluster", head) > 0
