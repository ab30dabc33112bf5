"""The jobs of a study, one after another; what has ended well is not trained again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path

from codistill.lineage import changed
from codistill.run_dir import RunDir, StorageError, read_json
from codistill.spec import JobSpec
from codistill.study.trials import Trial


class Progress(StrEnum):
    """How far the job of a trial is."""

    MISSING = "missing"
    BEGUN = "begun"
    DONE = "done"


def progress_of(run: RunDir, trial: Trial) -> Progress:
    """Raises `StorageError` when another spec was trained under this id: the study has changed since."""
    if not run.root.is_dir():
        return Progress.MISSING
    keys = changed(run.read_spec(), trial.spec)
    if keys:
        raise StorageError(
            f"{run.root} was trained with another {', '.join(keys)}; give the study another name, or delete that run"
        )
    fence = (run.fences() or [0])[-1]
    result = read_json(run.result(fence)) if fence else None
    return Progress.DONE if result is not None and result["outcome"] == "succeeded" else Progress.BEGUN


def train_missing(
    trials: Sequence[Trial], storage: Path, *, say: Callable[[str], None], train: Callable[[JobSpec, RunDir], int]
) -> int:
    """Train what has not ended well yet; `train` trains a job in its directory, from its first step or from where it
    is, and returns its exit code. The exit code of the first job that failed, which ends the study for now; 0 when all
    have been trained. Raises `StorageError` before anything is trained when the study has changed."""
    progress = [progress_of(RunDir(storage, trial.job_id), trial) for trial in trials]
    missing = [trial for trial, state in zip(trials, progress, strict=True) if state is not Progress.DONE]
    if len(missing) < len(trials):
        say(f"{len(trials) - len(missing)} of {len(trials)} jobs have ended well before")
    for number, trial in enumerate(missing, start=1):
        say(f"job {number} of {len(missing)}: {trial.job_id}")
        code = train(trial.spec, RunDir(storage, trial.job_id))
        if code != 0:
            say(f"{trial.job_id} ended with exit code {code}; the same command goes on from here")
            return code
    return 0
