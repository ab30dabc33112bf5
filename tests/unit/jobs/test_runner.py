"""What the runner makes of what Ray says."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.decide import Driver
from jobs.runner import RayRunner, RunnerError, launch_command


class Client:
    """Answers as Ray's client does."""

    def __init__(self, error: str | None = None, **info: Any) -> None:
        self.error, self.info, self.calls = error, info, []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            if self.error:
                raise RuntimeError(self.error)
            info = SimpleNamespace(**self.info)
            return [info] if name == "list_jobs" else info

        return call


def status(ended: bool) -> Any:
    return SimpleNamespace(is_terminal=lambda: ended)


def test_the_command_survives_its_shell(tmp_path: Path) -> None:
    storage = tmp_path / "with blank; rm -rf"
    command = launch_command(storage, "job-aaaaaa", 3)
    assert command.startswith("exec ")
    assert shlex.split(command)[1:] == [
        sys.executable, "-P", "-m", "cluster.launch", "--storage", str(storage), "--job", "job-aaaaaa", "--fence", "3",
    ]  # fmt: skip


def test_submit_names_the_attempt_and_leaves_time_for_a_checkpoint(tmp_path: Path) -> None:
    client = Client()
    RayRunner(client, tmp_path).submit("job-aaaaaa", 2)
    ((_, _, given),) = client.calls
    assert given["submission_id"] == "job-aaaaaa-2"
    assert given["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "30"


def test_the_same_submission_twice_is_no_error_and_all_else_is(tmp_path: Path) -> None:
    RayRunner(Client("500: Job with submission_id job-aaaaaa-1 already exists."), tmp_path).submit("job-aaaaaa", 1)
    with pytest.raises(RunnerError, match=r"cannot start a driver: No available agent to submit job"):
        RayRunner(Client("Request failed\nNo available agent to submit job"), tmp_path).submit("job-aaaaaa", 1)


def test_status_tells_absent_from_unanswered(tmp_path: Path) -> None:
    def ask(client: Client) -> Any:
        return RayRunner(client, tmp_path).status("job-aaaaaa", 1)

    assert ask(Client("404: Job job-aaaaaa-1 does not exist")).driver is Driver.ABSENT
    with pytest.raises(RunnerError):
        ask(Client("Connection refused"))
    assert ask(Client(status=status(False), message=None)).driver is Driver.ALIVE
    log = (
        "Job entrypoint command failed with exit code 1, last available logs (truncated):\nTraceback\nNo module named x"
    )
    ended = ask(Client(status=status(True), message=log))
    assert ended.driver is Driver.ENDED
    assert ended.message == "Job entrypoint command failed with exit code 1; its last line: No module named x"


def test_stop_of_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    RayRunner(Client("Job job-aaaaaa-1 does not exist"), tmp_path).stop("job-aaaaaa", 1)
    with pytest.raises(RunnerError, match="cannot stop a driver"):
        RayRunner(Client("Connection refused"), tmp_path).stop("job-aaaaaa", 1)


def test_only_our_own_living_drivers_are_listed(tmp_path: Path) -> None:
    ours = {"codistill_job": "job-aaaaaa", "codistill_fence": "2"}
    assert RayRunner(Client(status=status(False), metadata=ours), tmp_path).alive() == [("job-aaaaaa", 2)]
    assert RayRunner(Client(status=status(True), metadata=ours), tmp_path).alive() == []
    assert RayRunner(Client(status=status(False), metadata=None), tmp_path).alive() == []
