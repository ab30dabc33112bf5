"""Sources: real formats in small, made here, through the importer."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codistill.data.card import PARTS
from codistill.data.catalog import IMPORTABLE, find_dataset
from codistill.data.home import DataError
from codistill.data.sources import SOURCES, fashion_mnist, gcide, import_dataset, packages
from codistill.data.writing import Written

TRAIN, TEST = 48, 6
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (TRAIN + TEST, 28, 28)).astype(np.uint8)
LABELS = RANDOM.integers(0, 10, TRAIN + TEST).astype(np.uint8)


def idx(values: np.ndarray[Any, Any]) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def fashion_files() -> dict[str, bytes]:
    return {
        "train-images-idx3-ubyte.gz": gzip.compress(idx(IMAGES[:TRAIN])),
        "train-labels-idx1-ubyte.gz": gzip.compress(idx(LABELS[:TRAIN])),
        "t10k-images-idx3-ubyte.gz": gzip.compress(idx(IMAGES[TRAIN:])),
        "t10k-labels-idx1-ubyte.gz": gzip.compress(idx(LABELS[TRAIN:])),
    }


def tar(files: Mapping[str, bytes], mode: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=f"w{mode}") as archive:  # pyright: ignore[reportArgumentType, reportCallIssue]
        for name, data in files.items():
            entry = tarfile.TarInfo(f"./usr/share/x/{name}" if mode != ":gz" else f"package/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)


def deb(files: Mapping[str, bytes], kind: str = "xz") -> bytes:
    parts = {"debian-binary": b"2.0", "control.tar.xz": tar({"control": b"Package: x\nVersion: 1.2-3\n"}, ":xz")}
    parts[f"data.tar.{kind}"] = zstd(tar(files, ":")) if kind == "zst" else tar(files, f":{kind}")
    content = b"!<arch>\n"
    for name, part in parts.items():
        content += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(part):<10}`\n".encode() + part + b"\n" * (len(part) % 2)
        )
    return content


def imported(name: str, home: Path, path: Path) -> tuple[Written, list[str]]:
    told: list[str] = []
    return import_dataset(name, home, path, told.append), told


def read(written: Written) -> dict[str, pa.Table]:
    return {part: pq.read_table(written.dataset.paths(part)[0]) for part in PARTS}


def test_fashion_mnist_is_cut_by_hash_and_loses_nothing(tmp_path: Path) -> None:
    for name, content in fashion_files().items():
        (tmp_path / name).write_bytes(content)
    written, told = imported("fashion-mnist", tmp_path / "home", tmp_path)
    assert any("rows are" in line for line in told)  # not the 70,000 of the real package
    tables = read(written)
    assert {part: len(table) for part, table in tables.items()} == {"train": 44, "validation": 4, "test": 6}
    assert np.concatenate([table["sample_id"].to_numpy() for table in tables.values()]).tolist() == list(range(54))

    lots = sorted(range(TRAIN), key=lambda row: hashlib.sha256(f"fashion-mnist/{row}".encode()).hexdigest())
    order = [*sorted(lots[4:]), *sorted(lots[:4]), *range(TRAIN, TRAIN + TEST)]
    pixels = b"".join(b"".join(table["image"].to_pylist()) for table in tables.values())
    assert pixels == IMAGES[order].tobytes()
    assert np.concatenate([table["label"].to_numpy() for table in tables.values()]).tolist() == LABELS[order].tolist()

    facts = written.dataset.card.facts
    shares = IMAGES[sorted(lots[4:])] / 255
    assert facts["pixel_mean"] == pytest.approx([shares.mean()], abs=1e-6)
    assert facts["pixel_std"] == pytest.approx([shares.std()], abs=1e-6)
    assert facts["image_shape"] == [1, 28, 28]


def test_the_validation_rows_of_the_real_file_are_these_for_ever() -> None:
    rows = fashion_mnist.validation_rows(60_000)
    assert len(rows) == 5000
    assert rows[:5].tolist() == [23, 38, 47, 52, 67]


@pytest.mark.parametrize("kind", ["xz", "zst", "gz"])
def test_a_deb_is_read_on_any_system(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "dataset-fashion-mnist_1.2-3_all.deb"
    path.write_bytes(deb(fashion_files(), kind))
    by_file, told = imported("fashion-mnist", tmp_path / "home", path)
    assert by_file.new
    assert by_file.dataset.card.source.version == "1.2-3"
    assert any("not the checked archive of version 0.0~git20200523" in line for line in told)
    by_directory, _ = imported("fashion-mnist", tmp_path / "home", tmp_path)
    assert not by_directory.new
    assert by_directory.dataset.digest == by_file.dataset.digest


DICTIONARY = """\
00-database-short
  A dictionary

Aback \\A*back"\\ ([.a]*b[a^]k"), adv. [Pref. a- + back.]
   Toward the back or rear; {backward}. [1913 Webster]

   "Therewith aback she started." --Chaucer.
   [1913 Webster +PJC]

Zyx
   short.

Abacus \\Ab"a*cus\\, n.; {E}. pl. {Abaci}.
   A table or tray strewn with sand, anciently used for drawing. [PJC]
"""


def test_gcide_entries_are_cleaned_and_kept_together(tmp_path: Path) -> None:
    path = tmp_path / "some.name"
    path.write_bytes(gzip.compress(DICTIONARY.encode()))
    written, _ = imported("gcide", tmp_path / "home", path)
    tables = read(written)
    entries = [text for table in tables.values() for text in table["text"].to_pylist()]
    assert sorted(entries) == [
        "00-database-short A dictionary\n",
        'Aback \\A*back"\\ ([.a]*b[a^]k"), adv. [Pref. a- + back.] Toward the back or rear; backward. "Therewith aback'
        ' she started." --Chaucer.\n',
        'Abacus \\Ab"a*cus\\, n.; E. pl. Abaci. A table or tray strewn with sand, anciently used for drawing.\n',
    ]
    sizes = {part: len("".join(table["text"].to_pylist()).encode()) for part, table in tables.items()}
    assert written.dataset.card.facts["text_bytes"] == sizes


def test_the_headword_alone_chooses_the_split() -> None:
    assert gcide.part_of("Aback \\x") == gcide.part_of("aback (y)") == gcide.part_of("ABACK, z")
    lots = {f"word{i}": int(hashlib.md5(f"word{i}".encode()).hexdigest()[:8], 16) % 100 for i in range(2000)}
    expected = {0: "validation", 1: "test"}
    assert all(gcide.part_of(f"{word} [n]") == expected.get(lot, "train") for word, lot in lots.items())


def flights_table() -> pa.Table:
    at = [
        "2001-01-01T00:01", "2001-05-15T23:59", "2001-05-16T00:00", "2001-05-31T13:30", "2001-06-01T07:00",
        "2001-06-30T05:05", "2001-02-04T09:00",
    ]  # fmt: skip
    return pa.table(
        {
            "date": pa.array([datetime.fromisoformat(time) for time in at], pa.timestamp("us")),
            "delay": pa.array([14, 15, -3, 200, 15, 0, None]),
            "distance": [100, 300, 250, 4962, 31, 600, 1],
            "origin": pa.array(["ATL", "ABE", "ZZZ", "ATL", "ABE", "ATL", "ABE"], pa.large_string()),
            "destination": pa.array(["JFK", "LAX", "LAX", "JFK", "SFO", "JFK", "XNA"], pa.large_string()),
        }
    )


def test_flights_are_cut_by_day_and_show_neither_delay_nor_minutes(tmp_path: Path) -> None:
    content = io.BytesIO()
    pq.write_table(flights_table(), content)
    files = {"data/flights-3m.parquet": content.getvalue(), "package.json": json.dumps({"version": "9.9.9"}).encode()}
    path = tmp_path / "vega.tgz"
    path.write_bytes(tar(files, ":gz"))
    written, told = imported("flights", tmp_path / "home", path)
    tables = {part: table.to_pydict() for part, table in read(written).items()}
    assert tables["train"] == {
        "sample_id": [0, 1],
        "hour": [0, 23],
        "weekday": [0, 1],  # Monday, 1 January 2001; Tuesday, 15 May
        "origin": [2, 1],
        "destination": [1, 2],
        "distance": [100, 300],
        "day": [1, 135],
        "late": [0, 1],
    }
    assert (tables["validation"]["day"], tables["validation"]["weekday"]) == ([136, 151], [2, 3])
    assert (tables["validation"]["origin"], tables["validation"]["late"]) == ([0, 2], [0, 1])  # ZZZ: not in training
    assert (tables["test"]["day"], tables["test"]["hour"]) == ([152, 181], [7, 5])
    assert (tables["test"]["destination"], tables["test"]["late"]) == ([0, 1], [1, 0])
    facts: Any = written.dataset.card.facts
    assert facts["rows_left_out_incomplete"] == 1
    assert facts["categories"]["origin"] == ["(not seen in training)", "ABE", "ATL"]
    assert facts["numbers"] == {"distance": {"mean": 200.0, "std": 100.0}}
    assert written.dataset.card.source.version == "9.9.9"
    assert any("9.9.9, not the checked archive of version 3.2.1" in line for line in told)


def test_what_cannot_be_imported_is_told_apart(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with pytest.raises(DataError, match="'mnist' cannot be imported; fashion-mnist, gcide, flights can"):
        import_dataset("mnist", home)
    with pytest.raises(DataError, match="does not exist; give a directory or file that holds gcide"):
        import_dataset("gcide", home, tmp_path / "nothing")
    for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
        (tmp_path / name).write_bytes(fashion_files()[name])
    with pytest.raises(DataError, match="does not hold t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte;"):
        import_dataset("fashion-mnist", home, tmp_path)
    with pytest.raises(DataError, match="is one file, 'fashion-mnist' needs train-images"):
        import_dataset("fashion-mnist", home, tmp_path / "train-images-idx3-ubyte.gz")
    (tmp_path / "cut.deb").write_bytes(deb(fashion_files())[:20_000])
    with pytest.raises(DataError, match=r"cut\.deb cannot be read: .*; is the download complete"):
        import_dataset("fashion-mnist", home, tmp_path / "cut.deb")
    spoilt = bytearray(deb(fashion_files()))
    spoilt[20_000] ^= 255
    (tmp_path / "spoilt.deb").write_bytes(spoilt)
    with pytest.raises(DataError, match=r"spoilt\.deb cannot be read: .*; is the download complete"):
        import_dataset("fashion-mnist", home, tmp_path / "spoilt.deb")
    (tmp_path / "cut.dz").write_bytes(gzip.compress(DICTIONARY.encode())[:-20])
    with pytest.raises(DataError, match=r"cut\.dz cannot be read"):
        import_dataset("gcide", home, tmp_path / "cut.dz")
    (tmp_path / "other.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="is not a Parquet file with the columns date, delay"):
        import_dataset("flights", home, tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"states 37632 values \(48, 28, 28\) and has 37631; is it complete"):
        fashion_mnist.read_idx(idx(IMAGES[:TRAIN])[:-1], "x")
    with pytest.raises(DataError, match="is not an IDX file of bytes: it begins with 50415231"):
        fashion_mnist.read_idx(b"PAR1", "x")
    assert not home.exists() or not list(home.iterdir())


def client(directory: Path, name: str, script: str) -> None:
    program = directory / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_a_package_client_is_used_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    told: list[str] = []
    with pytest.raises(
        DataError, match=r"there is no npm here\. Fetch it yourself: .*vega-datasets-3\.2\.1\.tgz; then:"
    ):
        import_dataset("flights", tmp_path / "home", None, told.append)
    client(tools, "apt-get", "echo 'E: Unable to locate package' >&2; exit 100")
    with pytest.raises(DataError, match=r"apt-get ended with 100: E: Unable to locate package\. Fetch it yourself"):
        import_dataset("gcide", tmp_path / "home", None, told.append)

    prepared = tmp_path / "prepared.deb"
    prepared.write_bytes(deb(fashion_files()))
    client(tools, "apt-get", f'[ "$1 $2" = "download dataset-fashion-mnist" ] && /bin/cp {prepared} got.deb')
    written = import_dataset("fashion-mnist", tmp_path / "home", None, told.append)
    assert written.new
    assert (written.dataset.card.source.version, written.dataset.card.source.path) == ("1.2-3", None)
    assert "apt-get download dataset-fashion-mnist: about 31 MB into a temporary directory, at most 300 s" in told


def test_a_client_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client(tmp_path, "npm", "exec sleep 30")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(packages.NotFetched, match=r"npm did not end within 0 s"):
        packages.fetch(SOURCES["flights"].package, tmp_path, lambda line: None, timeout_s=0.1)


def test_names_that_can_be_imported_are_those_of_the_sources(tmp_path: Path) -> None:
    assert tuple(SOURCES) == IMPORTABLE
    with pytest.raises(DataError, match="to have it: codistill data import flights"):
        find_dataset("flights", tmp_path)
