"""A comparison as one figure. Needs matplotlib: the extra `plots`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from codistill.compare.comparison import Comparison
from codistill.compare.paired import t_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What a file says about when and by what it was made would make two files of the same numbers differ.
METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


class PlotError(RuntimeError):
    """The file cannot be written, or has no suffix that says how."""


class PlotsNotInstalled(PlotError):
    """matplotlib is not there; the extra `plots` brings it."""


def check_plot(path: Path) -> None:
    """Raise `PlotError` when no plot could be written to `path`; cheap, to be asked before anything is read."""
    from importlib.util import find_spec

    if path.suffix not in METADATA:
        raise PlotError(f"{path}: a plot's name ends in {', '.join(METADATA)}; use one of them")
    if not path.absolute().parent.is_dir():
        raise PlotError(f"{path}: the directory does not exist; create it, or name another")
    if find_spec("matplotlib") is None:
        raise PlotsNotInstalled("a plot needs matplotlib, not installed here: pip install 'codistill[plots]'")


def save_plot(comparison: Comparison, path: Path) -> None:
    """Write the figure to `path` (.png, .svg or .pdf): the same bytes for the same numbers. Raises `PlotError`."""
    check_plot(path)
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "codistill"}):
        try:
            draw(comparison).savefig(path, metadata=METADATA[path.suffix])
        except OSError as error:
            raise PlotError(f"cannot write {path}: {error.strerror or error}; name another file") from error


def draw(comparison: Comparison) -> Figure:
    """Left, log loss on validation against steps, one line per run; right, log loss on the test set, one dot per run,
    with the mean of each arm and its 95 % interval. A colour is an arm."""
    from matplotlib.figure import Figure

    colours = {row.arm: f"C{place % 10}" for place, row in enumerate(comparison.rows)}
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_curves(left, comparison, colours)
    _draw_scores(right, comparison, colours)
    return figure


def _draw_curves(axes: Axes, comparison: Comparison, colours: dict[str, str]) -> None:
    labelled: set[str] = set()
    missing: list[str] = []
    for score in comparison.scores:
        if score.curve:
            steps, losses = zip(*score.curve, strict=True)
            label = None if score.arm in labelled else score.arm
            labelled.add(score.arm)
            axes.plot(steps, losses, color=colours[score.arm], label=label, linewidth=1, marker=".")
        elif score.run is not None and score.replica is not None:
            missing.append(score.run)
    if labelled:
        axes.legend()
    axes.set(xlabel="step", ylabel="log loss (nats)", title="validation")
    if missing:
        axes.set_title(f"validation (not recorded: {', '.join(missing)})")


def _draw_scores(axes: Axes, comparison: Comparison, colours: dict[str, str]) -> None:
    for place, row in enumerate(comparison.rows):
        losses = [score.log_loss for score in comparison.scores if score.arm == row.arm]
        colour = colours[row.arm]
        axes.plot([place] * len(losses), losses, linestyle="none", marker="o", alpha=0.5, color=colour, gid=row.arm)
        interval = t_interval(losses)
        half = None if interval is None else [interval.high - interval.mean]
        axes.errorbar([place + 0.2], [row.log_loss], yerr=half, marker="s", capsize=4, color=colour)
    names = [row.arm for row in comparison.rows]
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes.set(xlim=(-0.5, len(names) - 0.3), ylabel="log loss (nats)", title="test: runs, mean, 95 % interval")
