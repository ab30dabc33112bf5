"""`codistill run --on http://host:8265`: one Ray Job on a cluster that need not be this machine's."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from codistill.run_dir import RunDir
from codistill.spec import JobSpec
from jobs.cli.attempt import exit_of_attempt
from jobs.cli.exits import CommandError, Exit
from jobs.cli.output import emit, plain, say

SPEC_FILE = "spec.json"
POLL_S, LOG_POLL_S = 0.5, 5.0
UNANSWERED_S = 60.0
"""Of failures one after the other: a head that is started again takes less."""


def run_as_ray_job(address: str, spec: JobSpec, run: RunDir, fence: int) -> int:
    """Submit, follow the log to the end, and return the exit code. `run` is where the cluster's nodes see it.

    Ctrl-C ends the following, not the job.
    """
    from jobs.runner import submission_id

    client = _connect(address)
    submission = submission_id(run.job_id, fence)
    _submit(client, submission, spec, run, fence)
    emit(run.job_id)
    say(f"Ray Job {submission} at {address}; run directory {run.root}")
    try:
        status = _follow(client, submission)
    except KeyboardInterrupt:
        say(f"\nno longer following; the job goes on. To end it: ray job stop {submission} --address {address}")
        raise
    say(f"{submission} {status}")
    if run.result(fence).exists():
        return exit_of_attempt(run, fence)
    if status == "SUCCEEDED":
        say(f"how it ended stands in {run.result(fence)}, on the cluster's storage, which is not visible here")
    return {"SUCCEEDED": Exit.DONE, "STOPPED": Exit.JOB_CANCELLED}.get(status, Exit.JOB_FAILED)


def _connect(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except Exception as error:
        raise CommandError(
            f"no Ray dashboard answers at {address}: {_last_line(error)}; is it the address that `ray start` shows?",
            Exit.UNAVAILABLE,
        ) from error


def _submit(client: Any, submission: str, spec: JobSpec, run: RunDir, fence: int) -> None:
    from jobs.runner import launch_command, stop_patience_env

    # Ray carries the folder to the cluster, so the spec's file need not be there.
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / SPEC_FILE).write_text(json.dumps(spec.model_dump(mode="json")))
        try:
            client.submit_job(
                entrypoint=launch_command(run.storage, run.job_id, fence, spec_file=SPEC_FILE, python="python"),
                submission_id=submission,
                runtime_env={"working_dir": folder, "env_vars": stop_patience_env()},
            )
        except Exception as error:
            raise CommandError(
                f"{address_of(client)} refused the job: {_last_line(error)}; its own log says more, see the address",
                Exit.UNAVAILABLE,
            ) from error


def address_of(client: Any) -> str:
    return str(client.get_address())


def _follow(client: Any, submission: str) -> str:
    """Show the log until the job has ended; its last status. Ray gives a log whole, so it is asked for more seldom."""
    status: Any = None
    shown, log_at, failing_since = 0, 0.0, None
    while True:
        text = None
        try:
            status = client.get_job_status(submission)
            if not status.is_terminal():
                failing_since = None  # how it ends will be known, with its log or without
            if status.is_terminal() or time.monotonic() >= log_at:
                text = client.get_job_logs(submission)
        except (RuntimeError, OSError) as error:  # of Ray, and of its HTTP client
            failing_since = failing_since or time.monotonic()
            if time.monotonic() - failing_since > UNANSWERED_S:
                return _given_up(client, submission, status, error)
        if text is not None:
            for line in text[shown:].splitlines():
                print(plain(line), file=sys.stderr)
            shown, log_at = len(text), time.monotonic() + LOG_POLL_S
            if status.is_terminal():
                return str(status.value)
        time.sleep(POLL_S)


def _given_up(client: Any, submission: str, status: Any, error: Exception) -> str:
    """The status, if that is of a job that has ended. Raises `CommandError` for one that may go on."""
    look = f"ray job logs {submission} --follow --address {address_of(client)}"
    if status is not None and status.is_terminal():
        say(f"the rest of its log does not come: {_last_line(error)}; try: {look}")
        return str(status.value)
    raise CommandError(
        f"{address_of(client)} has not answered for {UNANSWERED_S:g} s: {_last_line(error)}; the job goes on. To look"
        f" at it: ray job status {submission} --address {address_of(client)}, or {look}",
        Exit.UNAVAILABLE,
    ) from error


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
