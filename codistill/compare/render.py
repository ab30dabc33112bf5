"""A comparison as text in columns and as CSV. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

from codistill.compare.rows import Difference, Row
from codistill.words import size

METRIC_NAMES = {
    "log_loss": "log loss",
    "accuracy": "accuracy",
    "calibration_error": "ECE",
    "mean_abs_difference": "churn",
    "flips": "flips",
}
IN_PERCENT = {"accuracy", "calibration_error", "flips"}
MISSING = "–"

_Cell = Callable[[Row], str]


def arms_text(rows: Sequence[Row]) -> str:
    """The first block: one line per arm."""
    return aligned(*arm_cells(rows))


def arm_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Names of columns, and a line for each arm. Columns that no arm has are left out, as far as they are optional."""
    columns: dict[str, _Cell] = {
        "arm": lambda row: row.arm,
        "runs": lambda row: str(row.runs),
        "accuracy": lambda row: _value("accuracy", row.accuracy),
        "log loss": lambda row: _value("log_loss", row.log_loss),
        "ECE": lambda row: _value("calibration_error", row.calibration_error),
        "churn": lambda row: _value("mean_abs_difference", row.mean_abs_difference),
        "flips": lambda row: _value("flips", row.flips),
    }
    if any(row.diversity_flips is not None for row in rows):
        columns["diversity"] = lambda row: _value("flips", row.diversity_flips)
        columns["KL"] = lambda row: _value("kl_nats", row.diversity_kl_nats)
    if any(row.incumbent_flips is not None for row in rows):
        columns["churn to incumbent"] = lambda row: _value("mean_abs_difference", row.incumbent_mean_abs_difference)
        columns["flips to incumbent"] = lambda row: _value("flips", row.incumbent_flips)
    columns["seconds"] = lambda row: f"{row.seconds:.1f}"
    columns["exchanged"] = lambda row: size(row.bytes_exchanged)
    return list(columns), [[cell(row) for cell in columns.values()] for row in rows]


def differences_text(differences: Sequence[Difference], baseline: str) -> str:
    """The second block: one line per arm and metric, or one per arm that has no interval at all."""
    head = ["arm", "metric", f"minus {baseline}", "95 % interval", "seeds", "verdict"]
    shown = {one.arm for one in differences if one.interval is not None}
    without = {one.arm: one.n for one in differences if one.arm not in shown}
    lines = [difference_cells(one) for one in differences if one.arm in shown]
    lines += [[arm, "all", MISSING, MISSING, str(n), MISSING] for arm, n in without.items()]
    return aligned(head, lines)


def as_csv(rows: Sequence[Row], differences: Sequence[Difference], baseline: str | None) -> str:
    """One line per arm and metric, both blocks in one: `value` is the arm's, `difference` is to the baseline."""
    against = {(one.arm, one.metric): one for one in differences}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["arm", "runs", "metric", "value", "baseline", "difference", "low", "high", "seeds", "verdict"])
    for row in rows:
        for metric, value in vars(row).items():
            if metric not in {"arm", "runs", "one_model"} and value is not None:
                writer.writerow([row.arm, row.runs, metric, value, *_against(against.get((row.arm, metric)), baseline)])
    return out.getvalue()


def difference_cells(one: Difference) -> list[str]:
    """Arm, metric, difference, interval, seeds and verdict."""
    start = [one.arm, METRIC_NAMES[one.metric]]
    if one.interval is None:
        return [*start, MISSING, MISSING, str(one.n), MISSING]
    low, high = (_value(one.metric, bound, signed=True) for bound in (one.interval.low, one.interval.high))
    middle = _value(one.metric, one.interval.mean, signed=True)
    return [*start, middle, f"{low} .. {high}", str(one.n), str(one.verdict)]


def _against(one: Difference | None, baseline: str | None) -> list[object]:
    if one is None:
        return [""] * 6
    if one.interval is None:
        return [baseline, "", "", "", one.n, ""]
    return [baseline, one.interval.mean, one.interval.low, one.interval.high, one.n, one.verdict]


def _value(metric: str, value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return MISSING
    sign = "+" if signed else ""
    if metric in IN_PERCENT:
        return f"{value:{sign}.2%}"
    digits = 5 if metric == "mean_abs_difference" else 4
    return f"{value:{sign}.{digits}f}"


def aligned(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in columns, flush right."""
    table = [head, *lines]
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]
    text = ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in table]
    text.insert(1, "-" * len(text[0]))
    return "\n".join(text)
