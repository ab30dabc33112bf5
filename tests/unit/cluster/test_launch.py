"""The driver's command where it refuses: one sentence, exit code 2, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import launch
from cluster.launch import Speaker
from codistill.signals import noting

GOOD = '{"training": {"steps": 10}}'


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "spec.json").write_text(GOOD)
    (tmp_path / "storage").mkdir()
    return ["--storage", str(tmp_path / "storage"), "--job", "job", "--fence", "1"]


def spec_file(arguments: list[str], text: str = GOOD) -> str:
    path = Path(arguments[1]).parent / "spec.json"
    path.write_text(text)
    return str(path)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert launch.main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert all(line.startswith("codistill: ") for line in told.err.splitlines())
    storage = Path(arguments[1])
    assert not storage.exists() or list(storage.iterdir()) == []
    return told.err


def test_bad_spec_names_every_fault(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    bad = spec_file(arguments, '{"trainin": {}, "replicas": {"count": 0}}')
    told = refused([*arguments, "--spec-file", bad], capsys)
    assert "trainin: unknown key; did you mean 'training'?" in told
    assert "replicas.count" in told


def test_no_cluster_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--address" in refused([*arguments, "--spec-file", spec_file(arguments)], capsys)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:8265", "nonsense", "127.0.0.1:99999"])
def test_nobody_at_the_address(arguments: list[str], address: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused([*arguments, "--spec-file", spec_file(arguments), "--address", address], capsys)
    assert f"no Ray cluster answers at {address}" in told


def test_job_that_does_not_exist(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no job" in refused(arguments, capsys)


def test_bad_job_id(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments[3] = "../elsewhere"
    assert "is not an id" in refused(arguments, capsys)


def test_an_echo_of_a_signal_is_no_second_one() -> None:
    signals, times = list[int](), iter([3.0, 3.1, 9.0])
    note = noting(signals, lambda: next(times))
    for number in (15, 15, 2):
        note(number, None)
    assert signals == [15, 2]


def test_speaker_goes_on_when_nobody_listens() -> None:
    program = "import sys\nfrom cluster.launch import Speaker\ns = Speaker()\nsys.stdin.read()\ns.say('a')\ns.say('b')"
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(writing)
        os.close(reading)
        _, errors = process.communicate("", timeout=30)
    assert (process.returncode, errors) == (0, "")


def test_speaker_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    Speaker().say("a line")
    assert capsys.readouterr().out == "a line\n"
