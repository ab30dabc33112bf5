"""What the command's exit code means."""

from __future__ import annotations

from enum import IntEnum

from jobs.status import State


class Exit(IntEnum):
    """Documented exit codes; those above 99 are about the job, the rest about the command."""

    DONE = 0
    OUR_BUG = 1
    USAGE = 2
    """Wrong arguments, or a bad spec."""
    UNAVAILABLE = 3
    """The service cannot be reached or refuses, or what a service needs is missing: Ray, a port, storage."""
    JOB_FAILED = 100
    JOB_NOT_FINISHED = 101
    JOB_NOT_FOUND = 102
    JOB_CANCELLED = 103
    REPLAY_DIFFERS = 104
    INTERRUPTED = 130


class CommandError(Exception):
    """Ends the command with one sentence on standard error."""

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(message)
        self.code = code


def exit_of(state: State) -> Exit:
    """The exit code for a job in this state."""
    match state:
        case State.SUCCEEDED:
            return Exit.DONE
        case State.FAILED:
            return Exit.JOB_FAILED
        case State.CANCELLED:
            return Exit.JOB_CANCELLED
        case _:
            return Exit.JOB_NOT_FINISHED
