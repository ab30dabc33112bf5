"""A study's report as text in columns, and the cells that every form of it is made of. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from codistill.compare.render import MISSING, aligned
from codistill.study.effort import Effort, Ratio
from codistill.study.reach import Reach
from codistill.study.report import Report
from codistill.words import size

TRIED_HEAD = ["settings", "log loss on validation", ""]
REACH_HEAD = ["arm", "got there", "steps", "95 % interval", "operations", "received"]


def as_text(report: Report) -> str:
    """The comparison, what each arm was given, what it took to be as good as the baseline, and what each grid chose."""
    baseline = report.comparison.baseline
    blocks = [report.comparison.as_text()]
    unequal = [str(one) for one in report.ratios.values() if not one.is_equal]
    if unequal:
        blocks.append("\n".join([f"not given what {baseline} is:", *(f"  {line}" for line in unequal)]))
    if any(one.seeds for one in report.reach.values()):
        head = f"to the lowest log loss of {baseline} on validation, as multiples of what that took {baseline}:"
        blocks.append(f"{head}\n{reach_text(report)}")
    blocks += [f"{arm}, chosen on validation:\n{tried_text(report, arm)}" for arm in report.tried]
    if report.origins:
        blocks.append(f"made with {made_text(report)}")
    if report.missing:
        blocks.append(f"not ended well yet: {', '.join(report.missing)}")
    return "\n\n".join(blocks)


def reach_text(report: Report) -> str:
    """What it took each arm to be as good as the baseline."""
    return aligned(REACH_HEAD, reach_cells(report))


def given_text(report: Report) -> str:
    """What each arm was given."""
    return aligned(given_head(report), given_cells(report))


def made_text(report: Report) -> str:
    """What its runs were made with."""
    return "; ".join(map(str, report.origins))


def tried_text(report: Report, arm: str) -> str:
    """What a grid tried."""
    return aligned(TRIED_HEAD, tried_cells(report, arm))


def given_head(report: Report) -> list[str]:
    """Names of columns."""
    baseline = report.comparison.baseline
    return ["arm", "seen", "operations", f"seen / {baseline}", f"operations / {baseline}"]


def given_cells(report: Report) -> list[list[str]]:
    """A line for each arm of which facts are known; arms that are not given the same are marked."""
    return [[*_given(arm, effort, report.ratios.get(arm))] for arm, effort in report.efforts.items()]


def reach_cells(report: Report) -> list[list[str]]:
    """A line for each arm but the baseline."""
    return [[arm, *_reach(one)] for arm, one in report.reach.items()]


def tried_cells(report: Report, arm: str) -> list[list[str]]:
    """A line for each combination of an arm's grid: settings, log loss on validation, whether it was chosen."""
    return [
        [
            settings_text(one.settings),
            MISSING if one.validation_log_loss is None else f"{one.validation_log_loss:.4f}",
            "chosen" if at == report.chosen.get(arm) else "",
        ]
        for at, one in enumerate(report.tried[arm])
    ]


def settings_text(settings: Mapping[str, Any]) -> str:
    """As in a spec."""
    return ", ".join(f"{key} = {value}" for key, value in settings.items())


def _given(arm: str, effort: Effort, ratio: Ratio | None) -> Sequence[str]:
    mark = "" if ratio is None or ratio.is_equal else " (not the same)"
    against = [MISSING, MISSING] if ratio is None else [f"{ratio.units:.2f}", f"{ratio.flops:.2f}"]
    return [arm + mark, f"{effort.units:,} {effort.unit}", f"{effort.flops:.3g}", *against]


def _reach(one: Reach) -> Sequence[str]:
    seeds = f"{one.reached} of {one.seeds}"
    if one.steps is None:
        return [seeds, MISSING, MISSING, MISSING, MISSING]
    interval = one.steps_interval
    return [
        seeds,
        f"{one.steps:.2f}",
        MISSING if interval is None else f"{interval.low:.2f} .. {interval.high:.2f}",
        MISSING if one.flops is None else f"{one.flops:.2f}",
        MISSING if one.received_bytes is None else size(round(one.received_bytes)),
    ]
