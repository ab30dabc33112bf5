"""Rows by id: what a plain reading of the file gives, in any order, from any process, within bounds of memory."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from codistill.batch import Batch
from codistill.data.card import Part
from codistill.data.loader import read_ahead, training_batches
from codistill.data.parquet import Columns, ParquetRows, ParquetSplit, as_numpy
from codistill.data.split import draw_ids, in_order
from codistill.data.windows import ByteWindows, read_text
from codistill.phase import Replica
from codistill.randomness import Name
from codistill.recipes.text import TextRecipe
from codistill.spec import Loader, SameSet, Text
from tests.datasets import write_text

ROWS, GROUP_ROWS, FIRST_ID = 100, 16, 1000


def as_it_is(columns: Columns) -> Columns:
    return columns


def assemble(ids: Tensor, rows: Columns, stream: tuple[Name, ...] | None) -> Batch:
    x = torch.from_numpy(rows["x"]) + (0 if stream is None else 1000)
    return Batch(ids=ids, y=torch.from_numpy(rows["y"]), views={"x": x})


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A split of 60 + 40 rows in two files, with row groups of 16 and shorter last ones."""
    random = np.random.default_rng(0)
    pixels = pa.array([random.bytes(6) for _ in range(ROWS)], pa.binary(6))
    table = pa.table({"y": random.integers(0, 9, ROWS), "x": random.random(ROWS).astype(np.float32), "pixels": pixels})
    directory = tmp_path_factory.mktemp("rows")
    for name, part in (("a", table[:60]), ("b", table[60:])):
        pq.write_table(part, directory / f"{name}.parquet", row_group_size=GROUP_ROWS)
    return [directory / "a.parquet", directory / "b.parquet"]


def rows_of(paths: list[Path], **settings: Any) -> ParquetRows:
    return ParquetRows(paths, FIRST_ID, ("y", "x", "pixels"), as_it_is, **settings)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.integers(FIRST_ID, FIRST_ID + ROWS - 1), min_size=1, max_size=40), all_before=st.booleans())
def test_rows_are_those_of_a_plain_reading(paths: list[Path], ids: list[int], all_before: bool) -> None:
    plain = pa.concat_tables([pq.read_table(path) for path in paths]).take([i - FIRST_ID for i in ids])
    rows = rows_of(paths)
    if all_before:
        rows.read(np.arange(FIRST_ID, FIRST_ID + ROWS))
        assert rows.held_bytes == ROWS * (8 + 4 + 6)
    read = rows.read(np.array(ids))
    assert read["y"].tolist() == plain["y"].to_pylist()
    assert read["x"].tolist() == plain["x"].to_pylist()
    assert [bytes(row) for row in read["pixels"]] == plain["pixels"].to_pylist()


def test_ids_of_other_splits_are_refused(paths: list[Path]) -> None:
    for wrong in (FIRST_ID - 1, FIRST_ID + ROWS):
        with pytest.raises(IndexError, match=f"{wrong}, here are 1000 to 1099|from {wrong} to"):
            rows_of(paths).read(np.array([wrong, FIRST_ID]))


def test_row_groups_are_read_when_needed_and_no_more_are_kept_than_fit(paths: list[Path]) -> None:
    row_bytes = 8 + 4 + 6
    rows = rows_of(paths, cache_bytes=2 * GROUP_ROWS * row_bytes)
    assert rows.held_bytes == 0
    rows.read(np.array([FIRST_ID, FIRST_ID + 15]))
    assert rows.held_bytes == GROUP_ROWS * row_bytes
    rows.read(np.array([FIRST_ID + 16]))
    rows.read(np.array([FIRST_ID]))  # the first group is now the one used last
    rows.read(np.array([FIRST_ID + 32]))
    assert rows.held_bytes == 2 * GROUP_ROWS * row_bytes
    assert list(rows._groups) == [0, 2]
    whole = rows.read(np.arange(FIRST_ID, FIRST_ID + ROWS))
    assert rows.held_bytes <= 2 * GROUP_ROWS * row_bytes
    assert whole["y"].tolist() == rows_of(paths).read(np.arange(FIRST_ID, FIRST_ID + ROWS))["y"].tolist()
    tiny = rows_of(paths, cache_bytes=1)
    tiny.read(np.arange(FIRST_ID, FIRST_ID + ROWS))
    assert tiny.held_bytes == 8 * row_bytes  # the last group alone: 60 = 3 x 16 + 12, 40 = 2 x 16 + 8


def test_a_split_pickles_as_what_it_is_read_from(paths: list[Path]) -> None:
    split = ParquetSplit(rows_of(paths), ROWS, assemble, size=30)
    ids = split.ids.flip(0)
    before = split.read(ids)
    assert len(pickle.dumps(split)) < 1000
    copy = pickle.loads(pickle.dumps(split))
    assert copy.rows.held_bytes == 0
    after = copy.read(ids)
    assert torch.equal(after.views["x"], before.views["x"])
    assert torch.equal(after.y, before.y)
    assert torch.equal(split.read(ids, ("augment", 1)).views["x"], before.views["x"] + 1000)
    assert torch.equal(copy.ids, draw_ids(torch.arange(FIRST_ID, FIRST_ID + ROWS), 30, "train"))
    assert torch.cat([batch.ids for batch in in_order(copy, 7)]).tolist() == copy.ids.tolist()


def test_workers_read_the_same(paths: list[Path]) -> None:
    batches = training_batches(ParquetSplit(rows_of(paths), ROWS, assemble), SameSet(), Replica(0, 2, 3), 8)
    expected = [batches(step) for step in range(4)]
    made = list(read_ahead(batches, range(4), Loader(workers=1)))
    assert all(torch.equal(one.views["x"], other.views["x"]) for one, other in zip(made, expected, strict=True))


def test_missing_values_are_an_error() -> None:
    with pytest.raises(ValueError, match="1 of 2 values are missing"):
        as_numpy(pa.chunked_array([[1, None]]))
    sliced = pa.chunked_array([pa.array([b"ab", b"cd", b"ef"], pa.binary(2))[1:]])
    assert as_numpy(sliced).tolist() == [[99, 100], [101, 102]]


def test_a_text_is_its_entries_one_after_another(tmp_path: Path) -> None:
    strings = ["a\n", "", "bürde\n", "c" * 100 + "\n", "d\n"]
    for kind in (pa.string(), pa.large_string()):
        pq.write_table(pa.table({"text": pa.array(strings, kind)}), tmp_path / "t.parquet", row_group_size=2)
        assert read_text([tmp_path / "t.parquet"]).tobytes() == "".join(strings).encode()
    with pytest.raises(ValueError, match="the data set states 7 bytes of text"):
        _ = ByteWindows([tmp_path / "t.parquet"], 0, 7, 2).text


def test_windows_tile_the_text_and_share_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_text(tmp_path)
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path))
    recipe = TextRecipe(Text(context=16, evaluation_size=None))
    parts: tuple[Part, ...] = ("train", "validation", "test")
    whole = b"".join("".join(pq.read_table(data.paths(part)[0])["text"].to_pylist()).encode() for part in parts)
    seen: list[int] = []
    for part in parts:
        split = recipe.split(part)
        batch = split.read(split.ids.flip(0))
        for window_id, x, y in zip(batch.ids.tolist(), batch.views["x"], batch.y, strict=True):
            assert bytes(x.tolist()) == whole[window_id : window_id + 16]
            assert bytes(y.tolist()) == whole[window_id + 1 : window_id + 17]
        size = data.card.facts["text_bytes"][part]  # pyright: ignore
        assert len(split.ids) == (size - 1) // 16
        assert split.ids.diff().unique().tolist() == [16]
        seen += split.ids.tolist()
    assert len(set(seen)) == len(seen)
    assert batch.y.dtype == torch.int64
    assert batch.views["x"].dtype == torch.uint8


def test_windows_pickle_without_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path)
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path))
    split = TextRecipe(Text(context=32, train_size=20)).split("train")
    before = split.read(split.ids)
    assert len(split.ids) == 20
    assert len(pickle.dumps(split)) < 1000
    after = pickle.loads(pickle.dumps(split)).read(split.ids)
    assert torch.equal(before.views["x"], after.views["x"])
