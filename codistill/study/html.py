"""A study's report as one HTML file that asks for nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape

from codistill.compare.plots import draw
from codistill.compare.render import arm_cells, difference_cells
from codistill.study.plots import as_svg, draw_curves
from codistill.study.report import Report
from codistill.study.text import REACH_HEAD, TRIED_HEAD, given_cells, given_head, made_text, reach_cells, tried_cells

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #8884; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; overflow-x: auto; background: white; } figure svg { max-width: 100%; height: auto; }
pre { overflow-x: auto; padding: .75rem; background: #8881; }
"""


def as_html(report: Report) -> str:
    """Tables, plots and specs. Raises `PlotsNotInstalled`."""
    comparison, baseline = report.comparison, str(report.comparison.baseline)
    head, rows = arm_cells(comparison.rows)
    parts = [
        f"<h1>Study {escape(report.name)}</h1>",
        f"<p>{escape(_summary(report))}</p>",
        "<h2>Arms on the test set</h2>",
        _table(head, rows),
        f"<h2>Differences to {escape(baseline)}, paired by seed</h2>",
        _table(
            ["arm", "metric", f"minus {baseline}", "95 % interval", "seeds", "verdict"],
            map(difference_cells, comparison.differences),
        ),
        _paragraphs(comparison.notes),
        f"<figure>{as_svg(draw(comparison))}</figure>",
        "<h2>What each arm was given</h2>",
        _table(given_head(report), given_cells(report)),
        f"<h2>To the lowest log loss of {escape(baseline)} on validation</h2>",
        f"<p>Steps and operations as multiples of what that took {escape(baseline)}, in the mean over the seeds.</p>",
        _table(REACH_HEAD, reach_cells(report)),
        "<h2>Quality against what it took</h2>",
        f"<figure>{as_svg(draw_curves(report))}</figure>",
        *(_tried(report, arm) for arm in report.tried),
        "<h2>Specs</h2>",
        *(_spec(arm, spec.model_dump(mode="json", exclude_unset=True)) for arm, spec in report.specs.items()),
    ]
    title = f"<title>Study {escape(report.name)}</title>"
    start = f'<!doctype html><html lang="en"><meta charset="utf-8">{title}<style>{STYLE}</style>'
    return start + "\n".join(parts) + "</html>\n"


def _summary(report: Report) -> str:
    runs = sum(row.runs for row in report.comparison.rows if row.one_model)
    missing = f"; not ended well yet: {', '.join(report.missing)}" if report.missing else ""
    made = f" Made with {made_text(report)}." if report.origins else ""
    return (
        f"{runs} runs of {len(report.specs)} arms. Of each run the replica with the lowest log loss on validation is"
        f" scored, once, on the test set{missing}.{made}"
    )


def _tried(report: Report, arm: str) -> str:
    return f"<h2>What was tried for {escape(arm)}</h2>" + _table(TRIED_HEAD, tried_cells(report, arm))


def _spec(arm: str, spec: object) -> str:
    text = escape(json.dumps(spec, indent=2))
    return f"<details><summary>{escape(arm)}</summary><pre>{text}</pre></details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    columns = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)
