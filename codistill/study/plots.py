"""A study's curves as one figure. Needs matplotlib: the extra `plots`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from codistill.compare.plots import METADATA, PlotsNotInstalled
from codistill.study.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {
    "step": "steps",
    "seconds": "seconds",
    "received_bytes": "bytes received by all replicas",
    "flops": "floating-point operations of all replicas",
}


def draw_curves(report: Report) -> Figure:
    """Log loss on validation (mean over seeds) against steps, seconds, bytes and operations. A colour is an arm."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, (measure, label) in zip(figure.subplots(2, 2).flat, AXES.items(), strict=True):
        for place, (arm, curve) in enumerate(report.curves.items()):
            shown = [getattr(point, measure) for point in curve]
            losses = [point.log_loss for point in curve]
            axes.plot(shown, losses, label=arm, color=f"C{place % 10}", linewidth=1, marker=".")
        axes.set(xlabel=label, ylabel="log loss on validation (nats)")
    figure.axes[0].legend()
    return figure


def save_curves(report: Report, path: Path) -> None:
    """Write `draw_curves` into `path`, an .svg file. Raises `PlotsNotInstalled`."""
    path.write_text(as_svg(draw_curves(report)) + "\n")


def as_svg(figure: Figure) -> str:
    """The figure as an element of a page: the same text for the same numbers. Raises `PlotsNotInstalled`."""
    try:
        import matplotlib
    except ImportError:
        raise PlotsNotInstalled("plots need matplotlib, not installed here: pip install 'codistill[plots]'") from None
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "codistill", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata=METADATA[".svg"])
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]
