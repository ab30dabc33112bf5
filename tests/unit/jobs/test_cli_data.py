"""The verbs about data sets: what goes where, and what the exit codes are."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from codistill.data.catalog import find_dataset, find_model
from codistill.spec_files import load_spec
from jobs import cli
from jobs.cli.exits import Exit
from tests.datasets import write_flights, write_images

EXAMPLES = Path(cli.__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("CODISTILL_DATA", raising=False)
    monkeypatch.setenv("CODISTILL_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "data"


def test_import_from_a_file_then_again(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gcide.dict.dz"
    path.write_bytes(gzip.compress("\n\n".join(f"Word{i} a word that is number {i}." for i in range(400)).encode()))
    assert cli.run(["data", "import", "gcide", "--from", str(path)]) == Exit.DONE
    out, err = capfd.readouterr()
    assert out == f"{home / 'gcide'}\n"
    card = find_dataset("gcide", home).card
    assert card.rows == 400
    assert f"gcide: train {card.splits['train'].rows}, validation {card.splits['validation'].rows}, test " in err
    assert "note: rows are" in err
    assert cli.run(["data", "import", "gcide", "--from", str(path)]) == Exit.DONE
    assert "is there already, the same to the byte" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["data", "import", "mnist"], Exit.USAGE, "'mnist' cannot be imported; fashion-mnist, gcide, flights can"),
        (["data", "import", "gcide", "--from", "/nowhere"], Exit.USAGE, "/nowhere does not exist; give a directory"),
        (["data", "import", "flights"], Exit.UNAVAILABLE, "there is no npm here. Fetch it yourself: `npm pack"),
        (["data", "show", "flights"], Exit.USAGE, "to have it: codistill data import flights"),
        (["data", "show", "../x"], Exit.USAGE, "'../x' is not an id"),
        (["register", "data", "x", "/nowhere"], Exit.USAGE, "/nowhere is not a data set: there is no dataset.json"),
        (["register", "model", "x", "/nowhere"], Exit.USAGE, "/nowhere is not a model export"),
        (["register", "data", "X", "/"], Exit.USAGE, "'X' is not an id"),
    ],
)
def test_mistakes_are_explained(
    words: list[str], code: Exit, says: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.run(words) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert says in err
    assert "Traceback" not in err


def test_list_and_show(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["data", "list"]) == Exit.DONE
    assert "no data sets in" in capfd.readouterr().err
    images = write_images(home)
    elsewhere = write_flights(tmp_path / "elsewhere").directory
    assert cli.run(["register", "data", "clicks", str(elsewhere)]) == Exit.DONE
    (home / "broken").mkdir()
    (home / "broken" / "dataset.json").write_text("{")
    capfd.readouterr()

    assert cli.run(["data", "list"]) == Exit.DONE
    out, err = capfd.readouterr()
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [["clicks", "880"], ["fashion-mnist", "880"]]
    assert "note: broken: " in err
    assert cli.run(["data", "list", "-o", "json"]) == Exit.DONE
    listed = json.loads(capfd.readouterr().out)
    assert listed[1]["digest"] == images.digest
    assert listed[0]["directory"] == str(elsewhere)
    assert listed[0]["rows"] == {"train": 600, "validation": 120, "test": 160}

    assert cli.run(["data", "show", "clicks", "--verify"]) == Exit.DONE
    out, err = capfd.readouterr()
    assert "train 600, validation 120, test 160" in out
    assert "distance" in out
    assert "miles" in out
    assert "verified" in err
    file = images.directory / "train-00000.parquet"
    file.write_bytes(file.read_bytes() + b"x")
    assert cli.run(["data", "show", "fashion-mnist", "-o", "json"]) == Exit.DONE
    assert json.loads(capfd.readouterr().out)["splits"]["test"]["last_id"] == 879
    assert cli.run(["data", "show", "fashion-mnist", "--verify", "-o", "json"]) == Exit.UNAVAILABLE
    out, err = capfd.readouterr()
    assert json.loads(out)["problems"] == ["train-00000.parquet has been changed"]
    assert "data set 'fashion-mnist' is damaged: train-00000.parquet has been changed" in err


def test_a_model_gets_a_name(home: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "manifest.json"):
        (tmp_path / name).write_text("{}")
    assert cli.run(["register", "model", "served", str(tmp_path)]) == Exit.DONE
    assert find_model("served", home) == tmp_path


@pytest.mark.parametrize("name", ["images-pair", "text-pair", "tabular-pair"])
def test_examples_name_data_that_can_be_imported(name: str) -> None:
    spec = load_spec(EXAMPLES / f"{name}.toml")
    assert spec.name == name
    assert spec.recipe.kind == name.removesuffix("-pair")
    assert spec.recipe.data in ("fashion-mnist", "gcide", "flights")  # pyright: ignore
