"""What runs were made with, as far as they wrote it down: versions, the commit they were started in, the machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from codistill.run_dir import RunDir, read_json

COMMIT_DIGITS = 10


@dataclass(frozen=True)
class Origin:
    """Of one run or several that were made alike. None is what was not written down."""

    codistill: str | None
    torch: str | None
    commit: str | None
    """Of the repository in whose directory the run was started, cut to `COMMIT_DIGITS`."""
    cpu: str | None
    cores: int | None
    gpus: tuple[str, ...] = ()

    def __str__(self) -> str:
        commit = f" ({self.commit})" if self.commit else ""
        machine = [f"{self.cpu or 'an unknown processor'}, {self.cores or '?'} cores", *self.gpus]
        return f"codistill {self.codistill or '?'}{commit}, torch {self.torch or '?'}, on {', '.join(machine)}"


def origins_of(runs: Iterable[RunDir]) -> tuple[Origin, ...]:
    """The different ones, in the order of the runs, of the newest attempt of each; a run that wrote nothing down has
    none."""
    written = [read_json(run.attempt(run.fences()[-1]) / "environment.json") for run in runs]
    return tuple(dict.fromkeys(_origin(one) for one in written if one is not None))


def distinct(origins: Iterable[Iterable[Origin]]) -> tuple[Origin, ...]:
    """Of several arms."""
    return tuple(dict.fromkeys(origin for of_arm in origins for origin in of_arm))


def _origin(written: dict[str, Any]) -> Origin:
    versions, machine, git = written["versions"], written["machine"], written["git"] or {}
    commit = git.get("commit")
    return Origin(
        codistill=versions.get("codistill"),
        torch=versions.get("torch"),
        commit=commit and commit[:COMMIT_DIGITS],
        cpu=machine["cpu"],
        cores=machine["cores"],
        gpus=tuple(str(gpu) for gpu in machine["gpus"]),
    )
