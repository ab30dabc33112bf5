"""The exit code of a run without a service, out of what its attempt left behind."""

from __future__ import annotations

from codistill.run_dir import RunDir, read_json
from jobs.cli.exits import Exit
from jobs.cli.output import plain, say


def exit_of_attempt(run: RunDir, fence: int) -> Exit:
    """What `result.json` says of an attempt: its driver ends with 0 however the attempt ended."""
    result = read_json(run.result(fence))
    if result is None:
        return Exit.JOB_NOT_FINISHED
    if result["reason"] is not None:
        say(f"{run.job_id} {result['outcome']}: {plain(result['reason']['message'])}")
    return {"succeeded": Exit.DONE, "cancelled": Exit.JOB_CANCELLED}.get(result["outcome"], Exit.JOB_FAILED)
