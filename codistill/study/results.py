"""Results of arms as small files, by which a study goes on where its runs are gone: they can be kept for years."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from codistill.run_dir import StorageError, write_json
from codistill.study.arms import ArmResult
from codistill.study.trials import Trial


@dataclass(frozen=True)
class Kept:
    """What one file holds."""

    trained: str
    """Digest of the specs of all jobs of the arm, as they were written."""
    ensembled: bool
    result: ArmResult


FILE = TypeAdapter(Kept)


def keep(directory: Path, trials: Sequence[Trial], result: ArmResult, *, ensembled: bool) -> Path:
    """Write the result of an arm, all of whose jobs (`trials`) have ended well; the file's path."""
    path = directory / f"{result.arm}.json"
    kept = Kept(_digest(trials), ensembled, result)
    # A line for each figure would make thousands of them.
    write_json(path, FILE.dump_python(kept, mode="json", exclude_unset=True), indent=None)
    return path


def kept_results(
    directory: Path, arms: Mapping[str, Sequence[Trial]], *, ensemble_of: Collection[str]
) -> dict[str, ArmResult]:
    """What was kept of the arms with these trials, of those of which something was. Raises `StorageError` as
    `kept_result` does."""
    found = {arm: kept_result(directory, own, ensembled=arm in ensemble_of) for arm, own in arms.items()}
    return {arm: result for arm, result in found.items() if result is not None}


def kept_result(directory: Path, trials: Sequence[Trial], *, ensembled: bool) -> ArmResult | None:
    """What was kept of the arm whose jobs are `trials`, None when nothing was.

    Raises `StorageError` for a file of other jobs, or one that cannot be read.
    """
    path = directory / f"{trials[0].arm}.json"
    if not path.exists():
        return None
    try:
        kept = FILE.validate_json(path.read_bytes())
    except ValidationError as error:
        raise StorageError(f"{path} holds no result of an arm ({error.errors()[0]['msg']}); remove it") from None
    if kept.trained != _digest(trials) or (ensembled and not kept.ensembled):
        raise StorageError(
            f"{path} was made from other jobs than arm '{trials[0].arm}' has now; delete it, or give the study another"
            " directory for its results"
        )
    return kept.result


def _digest(trials: Sequence[Trial]) -> str:
    written = [trial.spec.model_dump(mode="json", exclude_unset=True) for trial in trials]
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()
