"""Data goes to standard output, words to standard error."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Format(StrEnum):
    """How data is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def say(words: str) -> None:
    """Something for a person to read."""
    print(words, file=sys.stderr, flush=True)


def emit(data: str) -> None:
    """Something for a program to read."""
    print(data, flush=True)


def emit_json(value: Any) -> None:
    emit(json.dumps(value, indent=2))


def emit_data(value: Any, output: Format) -> None:
    """As JSON or YAML."""
    if output is Format.YAML:
        import yaml

        emit(yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip())
    else:
        emit_json(value)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns as wide as their content; the last is left ragged."""
    cells = [[plain("-" if cell is None else str(cell)) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def plain(text: str) -> str:
    """`text` without control characters: what a job wrote must not steer the terminal."""
    return _CONTROL.sub("?", text)


def home() -> Path:
    """Where this user's service, runs and demos live."""
    return Path(os.environ.get("CODISTILL_HOME") or Path.home() / ".codistill").expanduser().absolute()


def database_url() -> str:
    """Where the service of this user keeps its jobs: CODISTILL_DATABASE, or a file in the home."""
    from jobs.head import service_dir

    return os.environ.get("CODISTILL_DATABASE") or f"sqlite:///{service_dir(home()) / 'jobs.db'}"


def service_url() -> str:
    from jobs.client import DEFAULT_URL

    return os.environ.get("CODISTILL_URL") or DEFAULT_URL


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
