"""The command line: `codistill <verb>`. One file per group of verbs; `main` turns every error into one sentence."""

from __future__ import annotations

import os
import sys
import traceback

from jobs.cli.exits import CommandError, Exit


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit. No error leaves a traceback, unless CODISTILL_LOG_LEVEL is debug."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    import typer

    from jobs.cli.app import app
    from jobs.cli.completion import COMPLETE_VARIABLE

    # Typer has brought its own copy of click since 0.20: its classes are reached through typer, whichever it is.
    _bad_parameter, _usage_error, any_usage_error, *_ = typer.BadParameter.__mro__

    if COMPLETE_VARIABLE in os.environ:
        from typer.completion import completion_init  # pyright: ignore[reportPrivateImportUsage]

        completion_init()  # the app has no option for it, which is where typer would call it
    try:
        code = app(arguments, prog_name="codistill", standalone_mode=False)
        if code == Exit.INTERRUPTED:  # what some versions of typer make of Ctrl-C
            return _say("interrupted", Exit.INTERRUPTED)
        return int(code) if isinstance(code, int) else Exit.DONE
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", Exit.INTERRUPTED)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE
    except Exception as error:
        if isinstance(error, any_usage_error):
            error.show()  # pyright: ignore[reportAttributeAccessIssue]
            return Exit.USAGE
        return _explain(error)


def _explain(error: Exception) -> int:
    if os.environ.get("CODISTILL_LOG_LEVEL", "").lower() == "debug":
        traceback.print_exc()
    if isinstance(error, CommandError):
        return _say(str(error), error.code)
    known = _known(error)
    if known is not None:
        return known
    kind = type(error).__name__
    return _say(f"unexpected {kind}: {error} (CODISTILL_LOG_LEVEL=debug shows where)", Exit.OUR_BUG)


def _known(error: Exception) -> int | None:
    """What errors of the library and the service mean here; None for one that nobody expected."""
    from codistill.run_dir import StorageError
    from codistill.spec_errors import SpecError

    if isinstance(error, SpecError):
        lines = [f"{problem}" for problem in error.problems]
        return _say("the spec is not valid:\n  " + "\n  ".join(lines), Exit.USAGE)
    if isinstance(error, StorageError):
        return _say(str(error), Exit.UNAVAILABLE)
    from jobs.client import DownloadDiffers, ServiceRefused, ServiceUnreachable
    from jobs.errors import HeadError, StoreError

    if isinstance(error, (HeadError, StoreError, DownloadDiffers)):
        return _say(str(error), Exit.UNAVAILABLE)

    if isinstance(error, ServiceUnreachable):
        return _say(f"{error}; start one with: codistill serve", Exit.UNAVAILABLE)
    if isinstance(error, ServiceRefused):
        code = {404: Exit.JOB_NOT_FOUND, 413: Exit.USAGE, 422: Exit.USAGE}.get(error.status, Exit.UNAVAILABLE)
        return _say(str(error), code)
    return None


def _say(sentence: str, code: int) -> int:
    print(f"codistill: {sentence}", file=sys.stderr)
    return code
