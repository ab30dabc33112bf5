"""From a study to the jobs that it takes. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from codistill.lineage import merged
from codistill.spec import JobSpec
from codistill.spec_errors import Problem, SpecError, parse_spec
from codistill.study.spec import Study

STUDY_LABEL, ARM_LABEL, CHOICE_LABEL = "study", "arm", "choice"
"""Labels of a trial's job, by which a service finds what belongs together."""


@dataclass(frozen=True)
class Trial:
    """One job of a study."""

    arm: str
    choice: int
    """Which combination of the arm's grid, from 0; 0 for an arm without."""
    settings: Mapping[str, Any]
    """That combination, by path."""
    seed: int
    spec: JobSpec
    job_id: str
    """On one machine the spec's name, and so the same whenever the study is run: it goes on where it stopped."""


def trials_of(study: Study) -> list[Trial]:
    """All jobs, seed after seed, so that all arms can be compared as soon as a seed is through.

    Raises `SpecError` for an arm that is no job, with the arm in the path.
    """
    return [
        _trial(study, arm, choice, settings, seed)
        for seed in study.seeds
        for arm in study.arms
        for choice, settings in enumerate(combinations(study.grid.get(arm, {})))
    ]


def by_arm(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """The trials of each arm, arms in the order in which they come."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        found.setdefault(trial.arm, []).append(trial)
    return found


def combinations(grid: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Every combination of a grid, the last setting changing fastest; a single empty one for no grid."""
    return (dict(zip(grid, values, strict=True)) for values in product(*grid.values()))


def _trial(study: Study, arm: str, choice: int, settings: Mapping[str, Any], seed: int) -> Trial:
    value = merged(study.base, study.arms[arm])
    for path, setting in settings.items():
        value = merged(value, _nested(path, setting))
    tried = f"-{choice}" if arm in study.grid else ""
    labels = {STUDY_LABEL: study.name, ARM_LABEL: arm, CHOICE_LABEL: str(choice)}
    value = merged(value, {"name": f"{study.name}-{arm}{tried}-{seed}", "seed": seed, "labels": labels})
    try:
        spec = parse_spec(value)
    except SpecError as error:
        problems = [Problem(f"arms.{arm}.{problem.path}".rstrip("."), problem.message) for problem in error.problems]
        raise SpecError(problems) from None
    return Trial(arm, choice, settings, seed, spec, spec.name)


def _nested(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value
