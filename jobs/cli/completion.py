"""`codistill completion`: what a shell needs to complete verbs and options."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from jobs.cli.exits import Exit
from jobs.cli.output import emit, say

COMPLETE_VARIABLE = "_CODISTILL_COMPLETE"


class Shell(StrEnum):
    """Shells that can be told."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


_HOW = {
    Shell.BASH: 'eval "$(codistill completion bash)"  # in ~/.bashrc',
    Shell.ZSH: 'eval "$(codistill completion zsh)"  # in ~/.zshrc, after compinit',
    Shell.FISH: "codistill completion fish | source  # in ~/.config/fish/config.fish",
}


def completion(shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish")]) -> int:
    """Print a script that makes a shell complete verbs and options."""
    from typer.completion import get_completion_script  # pyright: ignore[reportPrivateImportUsage]

    emit(get_completion_script(prog_name="codistill", complete_var=COMPLETE_VARIABLE, shell=shell.value))
    say(f"to use it: {_HOW[shell]}")
    return Exit.DONE
