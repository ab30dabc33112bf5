"""What the methods buy, from the product itself: `make evidence`, or `python -m tests.benchmarks.evidence [STUDY ...]`.

Every study of `docs/evidence` is trained as far as its results are not there yet, which can be interrupted at any time;
`docs/evidence.md` is written anew from the results, whoever wins. Nothing here takes part in the tests but the page,
which has to be what the results say.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from codistill.compare import NothingToCompare
from codistill.compare.render import arms_text, differences_text
from codistill.study import Study, load_study, trials_of
from codistill.study.arms import ArmResult
from codistill.study.plots import save_curves
from codistill.study.report import Report, report_on
from codistill.study.results import kept_results
from codistill.study.text import given_text, made_text, reach_text, tried_text
from codistill.study.trials import by_arm

PLACE = Path(__file__).parents[2] / "docs" / "evidence"
PAGE = PLACE.parent / "evidence.md"
STUDIES = ("images", "flights", "text", "steps")
PARTS = ("head", *STUDIES, "mlp", "currency")
"""Texts, in this order; those of studies have places for figures."""
FIGURES = re.compile(r"^\[\[(arms|differences|given|reach|tried|curves|made)(?: (\S+))?(?:: (.+))?\]\]$", re.MULTILINE)
"""`[[differences solo: a, b]]`: of arms `a` and `b` to `solo`; without a baseline the study's, without arms all."""


def main(names: Sequence[str]) -> int:
    for name in names or STUDIES:
        words = ["-m", "jobs.cli", "study", str(PLACE / f"{name}.toml"), "--results", str(PLACE / "results" / name)]
        code = subprocess.run([sys.executable, *words], check=False).returncode
        if code != 0:
            return code
        save_curves(_report(name), PLACE / f"{name}.svg")
    PAGE.write_text(page())
    return 0


def page() -> str:
    """What `docs/evidence.md` has to be."""
    return "\n".join(part(name) for name in PARTS)


def part(name: str) -> str:
    """A text with its figures; its beginning, where there are none yet."""
    text = (PLACE / f"{name}.md").read_text()

    def figures(found: re.Match[str]) -> str:
        kind, baseline, arms = found.groups()
        return _figures(name, kind, baseline, None if arms is None else [arm.strip() for arm in arms.split(",")])

    try:
        return FIGURES.sub(figures, text)
    except NothingToCompare:
        return text[: text.index("[[")] + "Not trained yet: `make evidence`.\n"


def _figures(name: str, kind: str, baseline: str | None, arms: Sequence[str] | None) -> str:
    """Raises `NothingToCompare` where there is no result of the baseline."""
    report = _report(name, baseline, arms)
    match kind:
        case "arms":
            shown = arms_text(report.comparison.rows)
        case "differences":
            shown = differences_text(report.comparison.differences, str(report.comparison.baseline))
        case "given":
            shown = given_text(report)
        case "reach":
            shown = reach_text(report)
        case "tried":
            shown = "\n\n".join(f"{arm}\n{tried_text(report, arm)}" for arm in report.tried)
        case "made":
            return f"Made with {made_text(report)}."
        case _:
            return f"![Log loss on validation against steps, seconds, bytes and operations](evidence/{name}.svg)"
    missing = f"\n\nNot trained yet: {', '.join(report.missing)}." if report.missing else ""
    return f"```\n{shown}\n```{missing}"


def _report(name: str, baseline: str | None = None, arms: Sequence[str] | None = None) -> Report:
    """Of a study, or of some of its arms beside the baseline. Raises `NothingToCompare` without a result of that."""
    study, kept = _results(name)
    against = baseline or study.set_against
    wanted = list(study.arms) if arms is None else [against, *arms]
    missing = [arm for arm in wanted if arm not in kept]
    return report_on(name, [kept[arm] for arm in wanted if arm in kept], baseline=against, missing=missing)


@cache
def _results(name: str) -> tuple[Study, dict[str, ArmResult]]:
    study = load_study(PLACE / f"{name}.toml")
    return study, kept_results(PLACE / "results" / name, by_arm(trials_of(study)), ensemble_of=study.ensemble_of)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
