"""What is drawn: the numbers behind the lines and dots, not pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from codistill.compare import Comparison, compare
from codistill.compare.plots import PlotError, check_plot, draw, save_plot
from codistill.records import METRICS, Recorder
from codistill.run_dir import RunDir
from tests.ended_runs import ended_run

LABELS = [0, 1]
CURVES = {1: {100: 0.9, 200: 0.7}, 2: {100: 0.8, 200: 0.6}, 3: {}}


def sure(share: float) -> list[list[float]]:
    return [[share, 1 - share], [1 - share, share]]


def recorded(run: RunDir, replica: str, curve: dict[int, float]) -> RunDir:
    recorder = Recorder(run.replica(1, replica) / "metrics", METRICS, fence=1, incarnation=0)
    for step, loss in curve.items():
        recorder.add_values(step, {"eval/log_loss": loss, "train/loss": 9.0})
    recorder.flush()
    return run


def comparison(storage: Path) -> Comparison:
    # Replica 1 is the better one: its curve is to be drawn, not that of replica 0.
    runs = [
        ended_run(
            storage, f"p-{s}", {"replica-0": (sure(0.5), sure(0.5)), "replica-1": (sure(p), sure(p))}, LABELS, seed=s
        )
        for s, p in [(1, 0.6), (2, 0.7), (3, 0.8)]
    ]
    for run, curve in zip(runs, CURVES.values(), strict=True):
        recorded(recorded(run, "replica-0", {100: 5.0}), "replica-1", curve)
    solo = recorded(ended_run(storage, "s-1", {"replica-0": (sure(0.5), sure(0.5))}, LABELS), "replica-0", {150: 1.0})
    return compare({"pair": runs, "solo": [solo]}, ensemble_of="pair")


def test_one_line_per_run_in_the_colour_of_its_arm(tmp_path: Path) -> None:
    left = draw(comparison(tmp_path)).axes[0]
    drawn = [(line.get_xdata(), line.get_ydata()) for line in left.lines]
    assert [(list(x), list(y)) for x, y in drawn] == [
        ([100, 200], [0.9, 0.7]),
        ([100, 200], [0.8, 0.6]),
        ([150], [1.0]),
    ]
    colours = [line.get_color() for line in left.lines]
    assert colours[0] == colours[1] != colours[2]
    legend = left.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["pair", "solo"]
    assert left.get_title() == "validation (not recorded: p-3)"


def test_a_dot_per_run_and_the_mean_with_its_interval(tmp_path: Path) -> None:
    right = draw(comparison(tmp_path)).axes[1]
    losses = -np.log([0.6, 0.7, 0.8])
    dots = {line.get_gid(): line for line in right.lines if line.get_gid()}
    assert dots["pair"].get_ydata() == pytest.approx(losses)
    assert list(dots["pair"].get_xdata()) == [0, 0, 0]
    assert dots["solo"].get_ydata() == pytest.approx([-np.log(0.5)])
    assert dots["ensemble of 2 pair"].get_ydata() == pytest.approx(-np.log([0.55, 0.6, 0.65]))
    mean, _, (bar,) = right.containers[0]
    assert mean.get_ydata() == pytest.approx([losses.mean()])
    half = 4.302653 * losses.std(ddof=1) / np.sqrt(3)
    (low, high) = bar.get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((losses.mean() - half, losses.mean() + half), rel=1e-5)
    assert [label.get_text() for label in right.get_xticklabels()] == ["pair", "solo", "ensemble of 2 pair"]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_same_numbers_give_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    found = comparison(tmp_path)
    one, other = tmp_path / f"one{suffix}", tmp_path / f"other{suffix}"
    save_plot(found, one)
    save_plot(found, other)
    assert one.read_bytes() == other.read_bytes()
    assert one.stat().st_size > 5000
    for word in (b"CreationDate", b"dc:date", b"Matplotlib"):
        assert word not in one.read_bytes()


def test_a_plot_that_cannot_be_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PlotError, match=r"ends in \.png, \.svg, \.pdf"):
        check_plot(tmp_path / "figure.jpeg")
    with pytest.raises(PlotError, match="directory does not exist"):
        check_plot(tmp_path / "nowhere" / "figure.png")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PlotError, match=r"pip install 'codistill\[plots\]'"):
        check_plot(tmp_path / "figure.png")
