"""The Ray head that `codistill serve` starts for itself: a process group of its own that outlives the command.

What was started is remembered in `<home>/service/cluster.json`, before it is started, so that nothing is ever lost
sight of; `codistill down` ends it by process id. Never `ray stop`, which would end every Ray of the machine.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from codistill.run_dir import StorageError, read_json, write_json
from jobs import processes
from jobs.errors import HeadError
from jobs.proxy import CALLBACK, CALLBACK_VARIABLE

START_TIMEOUT_S = 60.0
START_TRIES = 3
DEFAULT_OBJECT_STORE_BYTES = 1 << 30
SERVE_SETTINGS = {
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # 10 s without a proxy is 10 s without us
    # A request then changes threads less often, on processors that jobs train on. Our routes wait in threads of their
    # own.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}


@dataclass(frozen=True)
class Head:
    """A head that was started, or is about to be."""

    head_id: str
    """Mark in the environment of each of its processes."""
    address: str
    dashboard_url: str
    token_path: str
    temp_dir: str
    http_port: int
    """Where the service answered when it was last served from here."""
    pids: tuple[int, ...] = ()
    """For people; what is ended is looked up afresh."""


@dataclass(frozen=True)
class HeadSize:
    """What the head offers to jobs."""

    cpus: float
    gpus: float | None = None
    object_store_bytes: int = DEFAULT_OBJECT_STORE_BYTES


def service_dir(home: Path) -> Path:
    """Where the service keeps what it must remember; made when missing, for this user only."""
    directory = home / "service"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
    except OSError as error:
        raise StorageError(f"cannot use {directory}: {error.strerror}; set CODISTILL_HOME to another place") from error
    return directory


# ---------------------------------------------------------------- remember


def remembered(home: Path) -> Head | None:
    """What was last started from `home`, whether or not it still lives."""
    value: dict[str, Any] | None = read_json(home / "service" / "cluster.json")
    return None if value is None else replace(Head(**value), pids=tuple(value["pids"]))


def remember(home: Path, head: Head) -> None:
    write_json(service_dir(home) / "cluster.json", asdict(head))


def is_alive(head: Head) -> bool:
    """Whether both of the processes that make a head still run."""
    names = {Path(process.command).name for process in _processes_of(head)}
    return {"gcs_server", "raylet"} <= names


def _processes_of(head: Head) -> list[processes.Process]:
    return processes.belonging(processes.snapshot(head.head_id))


# ---------------------------------------------------------------- start and end


def start(home: Path, size: HeadSize, *, http_port: int) -> Head:
    """Start a head and remember it. Raises `HeadError`."""
    if not Path("/proc/self/environ").exists():
        raise HeadError("codistill serve starts a Ray head on Linux only; start one yourself and use --on ADDRESS")
    for last_try in [False] * (START_TRIES - 1) + [True]:
        head = _plan(home, http_port)
        remember(home, head)
        failure = _start_once(home, head, size)
        if failure is None:
            head = replace(head, pids=tuple(process.pid for process in _processes_of(head)))
            remember(home, head)
            return head
        end(home, head)
        # A port may have been taken between choosing and binding it: other ports then.
        if last_try:
            raise HeadError(f"the Ray head did not start: {failure} (all of it: {_log_path(home)})")
    raise AssertionError("the last try returns or raises")


def _plan(home: Path, http_port: int) -> Head:
    token_path = service_dir(home) / "token"
    if not token_path.exists():
        with os.fdopen(os.open(token_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    # Paths of Ray's sockets may not exceed 107 bytes, so they are not below `home`.
    temp_dir = tempfile.mkdtemp(prefix="codistill-", dir="/tmp")
    port, dashboard_port = free_ports(2)
    return Head(
        head_id=secrets.token_hex(8),
        address=f"127.0.0.1:{port}",
        dashboard_url=f"http://127.0.0.1:{dashboard_port}",
        token_path=str(token_path),
        temp_dir=temp_dir,
        http_port=http_port,
    )


def _start_once(home: Path, head: Head, size: HeadSize) -> str | None:
    """None when the head runs, else what went wrong."""
    agent_port, agent_grpc_port, client_port = free_ports(3)
    options = {
        "port": head.address.rpartition(":")[2],
        "dashboard-host": "127.0.0.1",
        "dashboard-port": head.dashboard_url.rpartition(":")[2],
        # Fixed by default, so that a second cluster on the machine could not run jobs.
        "dashboard-agent-listen-port": agent_port,
        "dashboard-agent-grpc-port": agent_grpc_port,
        "ray-client-server-port": client_port,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "num-cpus": f"{size.cpus:g}",
        "object-store-memory": size.object_store_bytes,
        "temp-dir": head.temp_dir,
        # It would read all logs ten times a second, for drivers that print what workers say; ours do not.
        "include-log-monitor": False,
        **({} if size.gpus is None else {"num-gpus": f"{size.gpus:g}"}),
    }
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--disable-usage-stats"]
    command += [f"--{name}={value}" for name, value in options.items()]
    environment = {**os.environ, **ray_environment(head), processes.MARK: head.head_id}
    environment.pop("RAY_AUTH_TOKEN", None)  # it would win over the path
    environment["TMPDIR"] = head.temp_dir  # what is killed cannot clean up after itself
    for name, value in SERVE_SETTINGS.items():
        environment.setdefault(name, value)
    # So that `python` in a Ray Job's command is one that has this package.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    with _log_path(home).open("w") as log:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=service_dir(home),
                start_new_session=True,
                timeout=START_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"not within {START_TIMEOUT_S:g} s"
    if done.returncode == 0 and is_alive(head):
        return None
    lines = [line for line in _log_path(home).read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"ray start ended with {done.returncode}"


def _log_path(home: Path) -> Path:
    return service_dir(home) / "ray-start.log"


def ray_environment(head: Head) -> dict[str, str]:
    """What a process needs in its environment, before it imports ray, to be let in."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": head.token_path,
        "RAY_USAGE_STATS_ENABLED": "0",
        CALLBACK_VARIABLE: CALLBACK,
    }


def end(home: Path, head: Head) -> int:
    """End every process of the head, with Serve and jobs on it, and forget it; how many there were."""
    # The raylet first: it ends its workers in order, while the rest still answers.
    count = processes.end(head.head_id, first=lambda process: Path(process.command).name == "raylet")
    shutil.rmtree(head.temp_dir, ignore_errors=True)
    (home / "service" / "cluster.json").unlink(missing_ok=True)
    return count


def free_ports(count: int) -> list[int]:
    """Loopback ports that are free now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
