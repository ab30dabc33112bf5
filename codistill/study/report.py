"""What a study shows, as far as its jobs have ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from codistill.compare import Comparison, NothingToCompare
from codistill.compare.comparison import set_against
from codistill.spec import JobSpec
from codistill.study.arms import ArmResult, Facts, Tried, not_ended_well, result_of
from codistill.study.curves import Point, mean_curve
from codistill.study.effort import Effort, Ratio, ratios
from codistill.study.origin import Origin, distinct
from codistill.study.reach import Reach, reach_of
from codistill.study.trials import Trial, by_arm


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
    reach: Mapping[str, Reach]
    """Of each arm but the baseline."""
    specs: Mapping[str, JobSpec]
    """Of the first seed."""
    origins: tuple[Origin, ...] = ()
    """The different ones of all arms."""
    missing: tuple[str, ...] = ()
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
            "reach": {arm: asdict(one) for arm, one in self.reach.items()},
            "origins": [asdict(one) | {"text": str(one)} for one in self.origins],
            "missing": list(self.missing),
        }


def report_of(
    name: str,
    trials: Sequence[Trial],
    storage: Path,
    facts: Facts,
    *,
    baseline: str,
    ensemble_of: Sequence[str] = (),
) -> Report:
    """What the jobs of `trials` have left in `storage`. Raises `NothingToCompare` while none of the baseline has ended
    well."""
    found = [result_of(own, storage, facts, ensembled=arm in ensemble_of) for arm, own in by_arm(trials).items()]
    results = [result for result in found if result is not None]
    return report_on(name, results, baseline=baseline, missing=not_ended_well(trials, storage))


def report_on(name: str, results: Sequence[ArmResult], *, baseline: str, missing: Sequence[str] = ()) -> Report:
    """The same from results of its arms, wherever they come from; of some of a study's arms if need be."""
    there = {result.arm: result for result in results}
    if baseline not in there:
        raise NothingToCompare(
            f"no job of the baseline '{baseline}' has ended well yet; wait for it, or name another baseline"
        )
    measured = {arm: one for result in results for arm, one in result.measured.items()}
    models = {arm: one for arm, one in measured.items() if one.row.one_model}
    efforts = {result.arm: result.effort for result in results if result.effort is not None}
    curves = {result.arm: mean_curve(result.curves.values()) for result in results}
    base = there[baseline]
    return Report(
        name=name,
        comparison=set_against(models | measured, baseline, [note for result in results for note in result.notes]),
        chosen={result.arm: result.chosen for result in results},
        tried={result.arm: result.tried for result in results if len(result.tried) > 1},
        efforts=efforts,
        ratios=ratios(efforts, baseline) if baseline in efforts else {},
        curves=curves,
        reach={result.arm: reach_of(result.curves, base.curves) for result in results if result is not base},
        specs={result.arm: result.spec for result in results},
        origins=distinct(result.origins for result in results),
        missing=tuple(missing),
    )
