"""What a study shows, as far as its jobs have ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from codistill.compare import Comparison, NothingToCompare, compare
from codistill.compare.arms import MAIN, arm_of, finished_attempt
from codistill.run_dir import RunDir
from codistill.spec import JobSpec
from codistill.study.curves import Point, curve_of
from codistill.study.effort import Effort, Ratio, effort_of, ratios
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
class Report:
    """A study's figures. Only arms with a run that has ended well are in it."""

    name: str
    comparison: Comparison
    chosen: Mapping[str, int]
    """Of each arm, which combination stands for it."""
    tried: Mapping[str, tuple[Tried, ...]]
    """Of each arm with a grid, all combinations, in their order."""
    efforts: Mapping[str, Effort]
    """Of each arm of which facts are known."""
    ratios: Mapping[str, Ratio]
    """The same; empty where those of the baseline are not."""
    curves: Mapping[str, Sequence[Point]]
    specs: Mapping[str, JobSpec]
    """Of the first seed."""
    missing: tuple[str, ...]
    """Ids of jobs that have not ended well."""

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs and pages."""
        return {
            "study": self.name,
            "comparison": self.comparison.as_json(),
            "chosen": {arm: dict(self.tried[arm][at].settings) for arm, at in self.chosen.items() if arm in self.tried},
            "tried": {arm: [asdict(one) for one in all_of] for arm, all_of in self.tried.items()},
            "efforts": {arm: asdict(one) for arm, one in self.efforts.items()},
            "ratios": {arm: {**asdict(one), "is_equal": one.is_equal} for arm, one in self.ratios.items()},
            "curves": {arm: [asdict(point) for point in curve] for arm, curve in self.curves.items()},
            "missing": list(self.missing),
        }

    def as_text(self) -> str:
        """The comparison, what each arm was given, and what each grid chose."""
        blocks = [self.comparison.as_text()]
        unequal = [str(one) for one in self.ratios.values() if not one.is_equal]
        if unequal:
            blocks.append(
                "\n".join([f"not given what {self.comparison.baseline} is:", *(f"  {line}" for line in unequal)])
            )
        for arm, at in self.chosen.items():
            if arm in self.tried:
                settings = self.tried[arm][at].settings
                chosen = ", ".join(f"{key} = {value}" for key, value in settings.items())
                blocks.append(f"{arm}: chosen on validation out of {len(self.tried[arm])}: {chosen}")
        if self.missing:
            blocks.append(f"not ended well yet: {', '.join(self.missing)}")
        return "\n\n".join(blocks)


def report_of(
    name: str,
    trials: Sequence[Trial],
    storage: Path,
    facts: Facts,
    *,
    baseline: str,
    ensemble_of: Sequence[str] = (),
) -> Report:
    """What the jobs of `trials`, of which each arm has at least one, have left in `storage`. Raises `NothingToCompare`
    while no job of the baseline has ended well."""
    names = list(dict.fromkeys(trial.arm for trial in trials))
    losses = {trial.job_id: _validation_log_loss(RunDir(storage, trial.job_id)) for trial in trials}
    all_tried = {arm: tuple(_tried(trials, arm, losses)) for arm in names}
    tried = {arm: combinations for arm, combinations in all_tried.items() if len(combinations) > 1}
    chosen = {arm: _best(all_tried[arm]) for arm in names}
    standing = [trial for trial in trials if trial.choice == chosen[trial.arm] and losses[trial.job_id] is not None]
    arms: dict[str, list[RunDir]] = {}
    for trial in sorted(standing, key=lambda trial: names.index(trial.arm)):
        arms.setdefault(trial.arm, []).append(RunDir(storage, trial.job_id))
    if baseline not in arms:
        raise NothingToCompare(
            f"no job of the baseline '{baseline}' has ended well yet; wait for it, or name another baseline"
        )
    comparison = compare(arms, baseline=baseline, ensemble_of=[arm for arm in ensemble_of if arm in arms])
    specs = {arm: next(trial.spec for trial in standing if trial.arm == arm) for arm in arms}
    known = {arm: facts(specs[arm]) for arm in arms}
    efforts = {arm: effort_of(specs[arm], found) for arm, found in known.items() if not isinstance(found, str)}
    return Report(
        name=name,
        comparison=comparison,
        chosen={arm: chosen[arm] for arm in arms},
        tried=tried,
        efforts=efforts,
        ratios=ratios(efforts, baseline) if baseline in efforts else {},
        curves={arm: curve_of([s for s in comparison.scores if s.arm == arm], known[arm]) for arm in arms},
        specs=specs,
        missing=tuple(trial.job_id for trial in trials if losses[trial.job_id] is None),
    )


def _tried(trials: Sequence[Trial], arm: str, losses: Mapping[str, float | None]) -> list[Tried]:
    own = [trial for trial in trials if trial.arm == arm]
    choices = sorted({trial.choice for trial in own})
    by_seed: dict[int, dict[int, float]] = {}
    for trial in own:
        if (loss := losses[trial.job_id]) is not None:
            by_seed.setdefault(trial.seed, {})[trial.choice] = loss
    whole = [found for found in by_seed.values() if len(found) == len(choices)]
    return [
        Tried(
            next(trial.settings for trial in own if trial.choice == choice),
            mean(found[choice] for found in whole) if whole else None,
        )
        for choice in choices
    ]


def _best(tried: Sequence[Tried]) -> int:
    """The first of the lowest mean loss; the first of all while nothing is known."""
    known = [(one.validation_log_loss, at) for at, one in enumerate(tried) if one.validation_log_loss is not None]
    return min(known)[1] if known else 0


def _validation_log_loss(run: RunDir) -> float | None:
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
