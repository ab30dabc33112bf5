"""The verb `compare`: which runs its words name, what it prints, what it says to wrong use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import jobs.cli
from jobs.cli.exits import Exit
from tests.ended_runs import ended_run
from tests.support import small_spec

LABELS = [0, 1]
SOLO = {"method": {"kind": "solo"}}


def sure(share: float) -> list[list[float]]:
    return [[share, 1 - share], [1 - share, share]]


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Two runs alone, two pairs, one deployed model."""
    for seed, alone, together in [(1, 0.6, 0.8), (2, 0.65, 0.87)]:
        spec = small_spec(name="alone", seed=seed, **SOLO)
        ended_run(tmp_path, f"a-{seed}", {"replica-0": (sure(alone), sure(alone))}, LABELS, spec=spec)
        spec = small_spec(name="together", seed=seed)
        both = {name: (sure(together), sure(together)) for name in ("replica-0", "replica-1")}
        ended_run(tmp_path, f"t-{seed}", both, LABELS, spec=spec)
    deployed = {"replica-0": (sure(0.9), sure(0.9)), "replica-1": (sure(0.6), sure(0.6))}
    ended_run(tmp_path, "deployed", deployed, LABELS)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], storage: Path, *words: str) -> tuple[int, str, str]:
    code = jobs.cli.run(["compare", "--storage", str(storage), *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_bare_runs_are_grouped_by_their_spec(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, storage, "a-1", "t-1", str(storage / "t-2"), "a-2", "-o", "json")
    values = json.loads(out)
    assert code == Exit.DONE
    assert [(row["arm"], row["runs"]) for row in values["rows"]] == [("alone", 2), ("together", 2)]
    assert values["baseline"] == "alone"
    gain = next(one for one in values["differences"] if one["metric"] == "log_loss")
    assert gain["interval"]["mean"] == pytest.approx((np.log(0.6 / 0.8) + np.log(0.65 / 0.87)) / 2)
    assert gain["verdict"] == "better"
    _, out, _ = call(capsys, storage, "a-1", "t-1", str(storage / "t-2"), "a-2", "-o", "yaml")
    assert yaml.safe_load(out) == values


def test_named_arms_options_and_csv(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["x=a-1,a-2", "y=t-1,t-2", "--baseline", "y", "--ensemble-of", "x", "--ensemble-of", "y"]
    code, out, _ = call(capsys, storage, *words, "--incumbent", "deployed:replica-1", "-o", "csv")
    assert code == Exit.DONE
    cells = {(line.split(",")[0], line.split(",")[2]): line.split(",") for line in out.splitlines()}
    assert float(cells["x", "incumbent_mean_abs_difference"][3]) == pytest.approx((0.0 + 0.05) / 2)
    assert cells["x", "log_loss"][4] == "y"
    assert cells["x", "log_loss"][9] == "worse"
    assert ("ensemble of 2 x", "log_loss") in cells
    assert ("ensemble of 2 y", "mean_abs_difference") in cells
    code, out, _ = call(capsys, storage, "x=a-1", "--incumbent", "deployed", "-o", "json")
    assert json.loads(out)["rows"][0]["incumbent_mean_abs_difference"] == pytest.approx(0.3)


def test_the_table_and_a_plot(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    code, out, _ = call(capsys, storage, "a-1", "t-1", "--plot", str(storage / "figure.svg"))
    assert code == Exit.DONE
    assert out.splitlines()[0].split()[:2] == ["arm", "runs"]
    assert (storage / "figure.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a=a-1", "a=t-1"], "name every arm once, and all its runs with it: ARM=RUN,RUN"),
        (["=a-1"], "name every arm once"),
        (["a="], "the name of a run is missing; write ARM=RUN"),
        (["a=a-1,"], "the name of a run is missing"),
        (["a=a-1,a-1"], "arm 'a' names a-1 twice"),
        (["alone=t-1", "a-1"], "'alone' is an arm and also the name in the spec of a-1; write ARM=RUN"),
        (["a=a-1", "--baseline", "b"], "--baseline b: there is no such arm; arms are a"),
        (["a=a-1", "--ensemble-of", "b"], "--ensemble-of b: there is no such arm; arms are a"),
        (["a=a-1", "--incumbent", "deployed:replica-9"], "that run's replicas are replica-0, replica-1"),
        (["a=a-1", "--plot", "figure.bmp"], "a plot's name ends in .png, .svg, .pdf"),
        (["a=a-1", "-o", "xml"], "xml"),
    ],
    ids=" ".join,
)
def test_wrong_use_says_what_would_be_right(
    storage: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    code, out, err = call(capsys, storage, *words)
    assert (code, out) == (Exit.USAGE, "")
    assert says in err


def test_without_matplotlib_it_names_the_extra(
    storage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "matplotlib" else real(name, *a))
    code, _, err = call(capsys, storage, "a=a-1", "--plot", str(storage / "figure.png"))
    assert code == Exit.UNAVAILABLE
    assert "pip install 'codistill[plots]'" in err


def test_a_registered_model_is_an_incumbent(
    storage: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path_factory.mktemp("data")))
    export = storage / "deployed" / "export" / "replica-1"
    moved = storage / "moved"
    for place in (export, moved):
        place.mkdir(parents=True)
        for name in ("config.json", "model.safetensors", "manifest.json"):
            (place / name).write_text("{}")
    assert jobs.cli.run(["register", "model", "in-use", str(export)]) == Exit.DONE
    assert jobs.cli.run(["register", "model", "elsewhere", str(moved)]) == Exit.DONE
    capsys.readouterr()
    _, by_name, _ = call(capsys, storage, "x=a-1,a-2", "--incumbent", "in-use", "-o", "json")
    _, by_run, _ = call(capsys, storage, "x=a-1,a-2", "--incumbent", "deployed:replica-1", "-o", "json")
    assert by_name == by_run
    code, _, err = call(capsys, storage, "x=a-1", "--incumbent", "elsewhere")
    assert code == Exit.UNAVAILABLE
    assert "no longer where its run left it" in err
