"""Data sets by name: where they are looked for, written whole or not at all, found damaged."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from codistill.data.card import PARTS, Column, Origin, Part, read_card
from codistill.data.catalog import find_dataset, find_model, list_datasets, register, registry
from codistill.data.home import DataError, data_home
from codistill.data.layouts import Layout, text_layout
from codistill.data.writing import Description, write_dataset
from tests.datasets import synthetic_datasets, write_flights, write_images, write_text


def described(name: str = "mine") -> Description:
    return Description(name, "Mine", "Made here.", "CC0", Origin(path="here"))


def letters(*texts: str) -> Layout:
    entries: dict[Part, list[str]] = {part: [text] for part, text in zip(PARTS, texts, strict=True)}
    return text_layout(entries)


def test_the_home_is_the_first_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODISTILL_DATA", raising=False)
    monkeypatch.delenv("CODISTILL_HOME", raising=False)
    monkeypatch.setenv("HOME", "/somebody")
    assert data_home() == Path("/somebody/.codistill/data")
    monkeypatch.setenv("CODISTILL_HOME", str(tmp_path))
    assert data_home() == tmp_path / "data"
    monkeypatch.setenv("CODISTILL_DATA", "~/sets")
    assert data_home() == Path("/somebody/sets")


def test_ids_go_on_from_split_to_split(tmp_path: Path) -> None:
    card = write_images(tmp_path).card
    spans = {part: (split.first_id, split.last_id, split.rows) for part, split in card.splits.items()}
    assert spans == {"train": (0, 599, 600), "validation": (600, 719, 120), "test": (720, 879, 160)}
    assert card.rows == 880
    assert card.bytes == sum(path.stat().st_size for path in (tmp_path / "fashion-mnist").glob("*.parquet"))


def test_the_digest_is_that_of_what_training_depends_on(tmp_path: Path) -> None:
    first = write_dataset(tmp_path / "a", described(), letters("a", "b", "c"))
    again = write_dataset(tmp_path / "b", described("other"), letters("a", "b", "c"))
    changed = write_dataset(tmp_path / "c", described(), letters("a", "b", "d"))
    other_facts = write_dataset(tmp_path / "d", described(), replace(letters("a", "b", "c"), facts={"text_bytes": 1}))
    assert first.dataset.digest == again.dataset.digest
    assert len({first.dataset.digest, changed.dataset.digest, other_facts.dataset.digest}) == 3

    card = json.loads((tmp_path / "a" / "mine" / "dataset.json").read_text())
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "a").rglob("*.parquet")}
    content = {"files": files, "splits": card["splits"], "facts": card["facts"]}
    assert card["digest"] == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def test_writing_again_leaves_what_is_there_and_mends_what_is_damaged(tmp_path: Path) -> None:
    assert write_dataset(tmp_path, described(), letters("a", "b", "c")).new
    assert not write_dataset(tmp_path, described(), letters("a", "b", "c")).new
    with pytest.raises(DataError, match="holds another data set 'mine'"):
        write_dataset(tmp_path, described(), letters("a", "b", "d"))
    damaged = tmp_path / "mine" / "test-00000.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert find_dataset("mine", tmp_path).problems() == ["test-00000.parquet has been changed"]
    assert write_dataset(tmp_path, described(), letters("a", "b", "c")).new
    assert find_dataset("mine", tmp_path).problems() == []
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    tables: dict[Part, pa.Table] = {part: pa.table({"text": ["x"]}) for part in PARTS}
    tables["test"] = pa.table({"text": [1]})
    columns = {"text": Column(type="string", meaning="x")}
    with pytest.raises(DataError, match="'text': 'int64'"):
        write_dataset(tmp_path, described(), Layout(columns, {}, tables, 8))
    assert list(tmp_path.iterdir()) == []


def test_damage_is_found(tmp_path: Path) -> None:
    data = write_text(tmp_path)
    assert data.problems() == []
    (tmp_path / "gcide" / "validation-00000.parquet").unlink()
    card = json.loads((tmp_path / "gcide" / "dataset.json").read_text())
    card["facts"]["text_bytes"]["test"] += 1
    (tmp_path / "gcide" / "dataset.json").write_text(json.dumps(card))
    assert find_dataset("gcide", tmp_path).problems() == [
        "validation-00000.parquet is missing",
        "dataset.json: the digest is not that of the files, splits and facts it lists",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "is not a description of format 1: format_version"),
        ({"files": {"../../x.parquet": {"bytes": 1, "sha256": "0" * 64}}}, r"files\.\.\./\.\./x\.parquet"),
        ({"surplus": 1}, "surplus: Extra inputs"),
    ],
)
def test_a_description_of_another_kind_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write_text(tmp_path)
    path = tmp_path / "gcide" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        read_card(path.parent)
    found, problems = list_datasets(tmp_path)
    assert found == []
    assert problems[0].startswith("gcide: ")


def test_names_lead_to_directories_elsewhere(tmp_path: Path) -> None:
    home = tmp_path / "home"
    elsewhere = write_flights(tmp_path / "elsewhere").directory
    with pytest.raises(DataError, match="codistill register data clicks DIRECTORY"):
        find_dataset("clicks", home)
    assert register("data", "clicks", elsewhere, home) == elsewhere
    assert find_dataset("clicks", home).directory == elsewhere
    assert find_dataset("clicks", home).name == "clicks"
    write_text(home)
    assert [data.name for data in list_datasets(home)[0]] == ["clicks", "gcide"]
    with pytest.raises(DataError, match="'gcide' is an imported data set"):
        register("data", "gcide", elsewhere, home)
    with pytest.raises(DataError, match=r"is not a data set: there is no dataset\.json"):
        register("data", "empty", tmp_path, home)
    with pytest.raises(ValueError, match="is not an id"):
        register("data", "../x", elsewhere, home)
    shutil.rmtree(elsewhere)
    with pytest.raises(DataError, match="is not a data set"):
        find_dataset("clicks", home)
    assert registry(home) == {"data": {"clicks": str(elsewhere)}, "models": {}}
    (home / "registry.json").write_text("{")
    with pytest.raises(DataError, match=r"registry\.json cannot be read"):
        find_dataset("clicks", home)


def test_models_have_names_too(tmp_path: Path) -> None:
    home, export = tmp_path / "home", tmp_path / "export"
    export.mkdir()
    with pytest.raises(
        DataError, match=r"is not a model export: config\.json, model\.safetensors, manifest\.json missing"
    ):
        register("models", "served", export, home)
    for name in ("config.json", "model.safetensors", "manifest.json"):
        (export / name).write_text("{}")
    with pytest.raises(DataError, match="codistill register model served DIR"):
        find_model("served", home)
    register("models", "served", export, home)
    assert find_model("served", home) == export


def test_synthetic_data_sets_are_the_same_each_time(tmp_path: Path) -> None:
    synthetic_datasets(tmp_path / "a")
    synthetic_datasets(tmp_path / "b")
    digests = [{data.name: data.digest for data in list_datasets(tmp_path / home)[0]} for home in "ab"]
    assert digests[0] == digests[1]
    assert list(digests[0]) == ["fashion-mnist", "flights", "gcide"]
