"""How a driver is started, watched and stopped: one driver is one Ray Job, named `<job>-<fence>`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jobs.decide import STOP_PATIENCE_S, Driver

LAUNCH_MODULE = "cluster.launch"


class RunnerError(RuntimeError):
    """The cluster cannot be asked or refuses; try again later."""


@dataclass(frozen=True)
class DriverStatus:
    """What the cluster says about one driver."""

    driver: Driver
    message: str | None = None


class Runner(Protocol):
    """Starts and stops drivers. Every method may raise `RunnerError`."""

    def submit(self, job_id: str, fence: int) -> None:
        """Start the driver of an attempt. Starting the same one again changes nothing."""
        ...

    def status(self, job_id: str, fence: int) -> DriverStatus: ...

    def stop(self, job_id: str, fence: int) -> None:
        """Ask the driver to end, then kill it. Returns at once; a driver that is not there is no error."""
        ...

    def alive(self) -> list[tuple[str, int]]:
        """(job id, fence) of every driver that has not ended."""
        ...


def submission_id(job_id: str, fence: int) -> str:
    return f"{job_id}-{fence}"


def launch_command(
    storage: Path, job_id: str, fence: int, *, spec_file: str | None = None, python: str = sys.executable
) -> str:
    """The command of a driver. `exec`, so that Ray's signals reach it and not a shell; `-P`, so that a folder named
    `jobs` or `cluster` where it happens to run does not shadow ours."""
    words = [python, "-P", "-m", LAUNCH_MODULE, "--storage", str(storage), "--job", job_id, "--fence", str(fence)]
    return "exec " + shlex.join(words + (["--spec-file", spec_file] if spec_file else []))


def stop_patience_env() -> dict[str, str]:
    """For the environment of a Ray Job: without it Ray kills 3 s after it asked, too early for a last checkpoint."""
    return {"RAY_JOB_STOP_WAIT_TIME_S": f"{STOP_PATIENCE_S:.0f}"}


class RayRunner:
    """Drivers as Ray Jobs of the cluster this process is attached to."""

    def __init__(
        self,
        client: Any,
        storage: Path,
        *,
        command: Callable[[Path, str, int], str] = launch_command,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._client, self._storage, self._command = client, storage, command
        self._env = {**stop_patience_env(), **(env or {})}

    def submit(self, job_id: str, fence: int) -> None:
        try:
            self._client.submit_job(
                entrypoint=self._command(self._storage, job_id, fence),
                submission_id=submission_id(job_id, fence),
                runtime_env={"env_vars": self._env},
                metadata={"codistill_job": job_id, "codistill_fence": str(fence)},
            )
        except Exception as error:
            # "already exists": an earlier manager submitted it and died before it could say so. Everything else, such
            # as "No available agent" for some seconds after a cluster's start, is tried again by whoever asked.
            if "already exists" not in str(error):
                raise _explained("start a driver", error) from error

    def status(self, job_id: str, fence: int) -> DriverStatus:
        try:
            info = self._client.get_job_info(submission_id(job_id, fence))
        except Exception as error:
            if "does not exist" in str(error):
                return DriverStatus(Driver.ABSENT)
            raise _explained("ask about a driver", error) from error
        if not info.status.is_terminal():
            return DriverStatus(Driver.ALIVE)
        return DriverStatus(Driver.ENDED, _ending(info.message) or str(info.status))

    def stop(self, job_id: str, fence: int) -> None:
        try:
            self._client.stop_job(submission_id(job_id, fence))
        except Exception as error:
            if "does not exist" not in str(error):
                raise _explained("stop a driver", error) from error

    def alive(self) -> list[tuple[str, int]]:
        try:
            entries = self._client.list_jobs()
        except Exception as error:
            raise _explained("list drivers", error) from error
        ours = [e for e in entries if not e.status.is_terminal() and "codistill_job" in (e.metadata or {})]
        return [(e.metadata["codistill_job"], int(e.metadata["codistill_fence"])) for e in ours]


def connect_runner(storage: Path, env: Mapping[str, str]) -> RayRunner:
    """A runner for the cluster that this process is attached to, never for another one of the same machine; drivers
    and their workers get `env`."""
    import ray
    from ray.dashboard.utils import ray_address_to_api_server_url
    from ray.job_submission import JobSubmissionClient

    # "auto" would pick whichever cluster of the machine was started last.
    address = ray_address_to_api_server_url(ray.get_runtime_context().gcs_address)
    return RayRunner(JobSubmissionClient(address), storage, env=env)


def _explained(action: str, error: Exception) -> RunnerError:
    lines = str(error).strip().splitlines()  # Ray answers with a traceback: its last line says what happened
    return RunnerError(f"cannot {action}: {lines[-1][:500] if lines else type(error).__name__}")


def _ending(message: str | None) -> str:
    """How Ray says that a driver ended, and the last line of its log: Ray puts up to 20,000 characters between."""
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()]
    if not lines:
        return ""
    how = lines[0].partition(", last available logs")[0]
    return how if len(lines) == 1 else f"{how}; its last line: {lines[-1][:500]}"
