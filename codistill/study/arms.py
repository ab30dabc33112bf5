"""What the jobs of one arm have shown, in numbers that need their runs no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from codistill.compare.arms import MAIN, arm_of, find_entries, finished_attempt
from codistill.compare.comparison import measure_all
from codistill.compare.predictions import NothingToCompare
from codistill.compare.rows import Measured
from codistill.run_dir import RunDir
from codistill.spec import JobSpec
from codistill.study.curves import Point, points_of
from codistill.study.effort import Effort, effort_of
from codistill.study.origin import Origin, origins_of
from codistill.study.trials import Trial

Facts = Callable[[JobSpec], Mapping[str, Any] | str]
"""What `codistill.describe` says of a spec, or why that is not known."""


@dataclass(frozen=True)
class Tried:
    """A combination of an arm's grid."""

    settings: Mapping[str, Any]
    validation_log_loss: float | None
    """Mean over the seeds that all combinations of the arm have; None where there is none yet."""


@dataclass(frozen=True)
class ArmResult:
    """An arm of a study, as far as its jobs have ended well, which one at least has."""

    arm: str
    tried: tuple[Tried, ...]
    """All combinations of its grid, in their order; a single one without settings for an arm without a grid."""
    chosen: int
    """Which of them stands for the arm."""
    spec: JobSpec
    """Of its first seed."""
    measured: dict[str, Measured]
    """The arm itself; its controls, as `arm/control`; its ensemble, if one was wanted."""
    curves: dict[int, tuple[Point, ...]]
    """By seed, of the model that stands for the run."""
    effort: Effort | None
    """None where facts are not known."""
    notes: tuple[str, ...]
    """What could not be counted, and why."""
    origins: tuple[Origin, ...] = ()
    """What the runs that stand for it were made with; empty where that was not kept."""


def result_of(trials: Sequence[Trial], storage: Path, facts: Facts, *, ensembled: bool) -> ArmResult | None:
    """Of the trials of one arm, what is in `storage`; None when no job of the combination that stands for it has ended
    well."""
    arm = trials[0].arm
    losses = {trial.job_id: validation_log_loss(RunDir(storage, trial.job_id)) for trial in trials}
    tried = _tried(trials, losses)
    chosen = _best(tried)
    standing = [trial for trial in trials if trial.choice == chosen and losses[trial.job_id] is not None]
    if not standing:
        return None
    entries, notes = find_entries({arm: [RunDir(storage, trial.job_id) for trial in standing]})
    named = {name if name == arm else f"{arm}/{name}": found for name, found in entries.items()}
    measured = measure_all(named, [arm] if ensembled else [], None, notes)
    known, spec = facts(standing[0].spec), standing[0].spec
    return ArmResult(
        arm=arm,
        tried=tuple(tried),
        chosen=chosen,
        spec=spec,
        measured=measured,
        curves={
            score.seed: tuple(points_of(RunDir(storage, score.run), score.replica, known))
            for score in measured[arm].scores
            if score.run is not None and score.seed is not None and score.replica is not None
        },
        effort=None if isinstance(known, str) else effort_of(spec, known),
        notes=tuple(notes),
        origins=origins_of(RunDir(storage, trial.job_id) for trial in standing),
    )


def not_ended_well(trials: Sequence[Trial], storage: Path) -> list[str]:
    """Ids of the jobs that have not."""
    runs = [RunDir(storage, trial.job_id) for trial in trials]
    return [run.job_id for run in runs if validation_log_loss(run) is None]


def validation_log_loss(run: RunDir) -> float | None:
    """Of the replica that the run would serve; None when it has not ended well."""
    if not run.root.is_dir():
        return None
    try:
        _, result = finished_attempt(run)
    except NothingToCompare:
        return None
    own = [entry for name, entry in result["replicas"].items() if arm_of(name) == MAIN]
    losses = [entry["metrics"]["eval/log_loss"] for entry in own if entry["outcome"] == "succeeded"]
    return min(losses, default=None)


def _tried(trials: Sequence[Trial], losses: Mapping[str, float | None]) -> list[Tried]:
    choices = sorted({trial.choice for trial in trials})
    by_seed: dict[int, dict[int, float]] = {}
    for trial in trials:
        if (loss := losses[trial.job_id]) is not None:
            by_seed.setdefault(trial.seed, {})[trial.choice] = loss
    whole = [found for found in by_seed.values() if len(found) == len(choices)]
    return [
        Tried(
            next(trial.settings for trial in trials if trial.choice == choice),
            mean(found[choice] for found in whole) if whole else None,
        )
        for choice in choices
    ]


def _best(tried: Sequence[Tried]) -> int:
    """The first of the lowest mean loss; the first of all while nothing is known."""
    known = [(one.validation_log_loss, at) for at, one in enumerate(tried) if one.validation_log_loss is not None]
    return min(known)[1] if known else 0
