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
POLL_S = 0.5


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
    shown = 0
    while True:
        ended = client.get_job_status(submission)
        text = client.get_job_logs(submission)
        for line in text[shown:].splitlines():
            print(plain(line), file=sys.stderr)
        shown = len(text)
        if ended.is_terminal():
            return str(ended.value)
        time.sleep(POLL_S)


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
