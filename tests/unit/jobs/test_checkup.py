"""What `doctor` makes of what it measured, and what can be chosen from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from codistill.spec import Method, Recipe
from jobs import cli
from jobs.checkup import (
    GIB,
    Finding,
    Grade,
    judge_database,
    judge_gpus,
    judge_port,
    judge_python,
    judge_room,
    judge_shared_memory,
    judge_storage,
    judge_versions,
    worst,
)
from jobs.cli import doctor
from jobs.offered import cited, first_sentence, offered_methods, offered_recipes
from tests.postgres import Postgres

OK, WARN, FAIL = Grade
HAVE = {"codistill": "0.1.0", "torch": "2.13.0", "ray": "2.60.1", "psycopg": "3.3"}
MOUNTS = ["/dev/sda / ext4 rw 0 0", "tmpfs /run tmpfs rw 0 0", "nfs:/x /data nfs4 rw 0 0", "odd"]


@pytest.mark.parametrize(
    ("finding", "grade", "says"),
    [
        (judge_python((3, 10, 9)), FAIL, "3.11"),
        (judge_python((3, 12, 1)), OK, ""),
        (judge_port(8700, free=True, ours=False), OK, ""),
        (judge_port(8700, free=False, ours=True), OK, ""),
        (judge_port(8700, free=False, ours=False), WARN, "--port"),
        (judge_shared_memory(None), WARN, "Linux"),
        (judge_shared_memory(64 << 20), WARN, "--shm-size"),
        (judge_shared_memory(GIB), OK, ""),
        (judge_storage("/runs", "storage /runs is full", None, None), FAIL, "--storage"),
        (judge_storage("/runs", None, 50 * GIB, "tmpfs"), WARN, "on a disk"),
        (judge_storage("/runs", None, 4 * GIB, "ext4"), WARN, "prune"),
        (judge_storage("/runs", None, 50 * GIB, "ext4"), OK, ""),
        (judge_gpus(2, None), FAIL, "import torch"),
        (judge_gpus(2, 1), WARN, "CUDA"),
        (judge_gpus(2, 2), OK, ""),
        (judge_gpus(0, 0), OK, ""),
        (judge_database("x", "the store x does not answer"), FAIL, "CODISTILL_DATABASE"),
        (judge_database("x", None), OK, ""),
        (judge_room(8, 0, 3 * GIB), OK, ""),
        (judge_room(1, 0, 64 * GIB), WARN, "replicas.cpus = 0.5"),
        (judge_room(8, 0, GIB), WARN, "replicas.cpus = 0.5"),
    ],
)
def test_each_finding_has_a_grade_and_where_needed_a_remedy(finding: Finding, grade: Grade, says: str) -> None:
    assert finding.grade is grade
    assert says in finding.remedy
    assert bool(finding.remedy) == (grade is not OK)


@pytest.mark.parametrize(
    ("change", "postgres", "grades"),
    [
        ({}, False, [OK, OK, OK]),
        ({"ray": None}, False, [OK, OK, WARN]),
        ({"ray": "2.61.0"}, False, [OK, OK, FAIL]),
        ({"ray": "2.6.0"}, False, [OK, OK, FAIL]),
        ({"torch": None}, False, [OK, FAIL, OK]),
        ({}, True, [OK, OK, OK, OK]),
        ({"psycopg": None}, True, [OK, OK, OK, FAIL]),
    ],
)
def test_versions(change: dict[str, str | None], postgres: bool, grades: list[Grade]) -> None:
    assert [one.grade for one in judge_versions({**HAVE, **change}, needs_postgres=postgres)] == grades


def test_room_is_what_is_short() -> None:
    assert "3 small replicas" in judge_room(8, 0, 3 * GIB).fact
    assert "8 small replicas" in judge_room(8, 0, 30 * GIB).fact
    assert worst([judge_python((3, 12)), judge_gpus(1, 0)]) is WARN
    assert worst([judge_gpus(1, 0), judge_gpus(1, None), judge_gpus(0, 0)]) is FAIL
    assert worst([]) is OK


def test_what_the_kernel_says_is_read() -> None:
    assert doctor.available_memory_bytes(["MemTotal: 9 kB", "MemAvailable:   2048 kB"]) == 2 << 20
    assert doctor.available_memory_bytes([]) is None
    assert doctor.file_system_of(Path("/data/runs"), MOUNTS) == "nfs4"
    assert doctor.file_system_of(Path("/database"), MOUNTS) == "ext4"
    assert doctor.file_system_of(Path("/run/x"), MOUNTS) == "tmpfs"


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[dict[str, str]]]]:
    monkeypatch.setenv("CODISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CODISTILL_DATABASE", raising=False)
    monkeypatch.setattr(doctor, "_visible_gpus", lambda: 0)

    def run(*words: str) -> tuple[int, list[dict[str, str]]]:
        code = cli.run(["doctor", "-o", "json", *words])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_doctor_changes_nothing_and_exits_with_3_when_something_fails(
    call: Callable[..., tuple[int, list[dict[str, str]]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, found = call()
    assert (code, [one["about"] for one in found]) == (
        0,
        ["python", "codistill", "torch", "ray", "port", "shared memory", "storage", "gpu", "database", "room"],
    )
    assert not (tmp_path / "home").exists()
    (tmp_path / "file").write_text("no database " * 100)
    monkeypatch.setenv("CODISTILL_DATABASE", f"sqlite:///{tmp_path / 'file'}")
    code, found = call()
    (database,) = [one for one in found if one["about"] == "database"]
    assert (code, database["grade"]) == (3, "fail")
    assert "not a readable store" in database["fact"]


def test_doctor_asks_postgresql(
    call: Callable[..., tuple[int, list[dict[str, str]]]], postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODISTILL_DATABASE", postgres.url("postgres"))
    code, found = call()
    facts = {one["about"]: one["fact"] for one in found}
    assert (code, facts["database"]) == (0, f"postgres at {postgres.root}:5432")
    assert facts["psycopg"].startswith("3.")
    monkeypatch.setenv("CODISTILL_DATABASE", postgres.url("postgres", password="wrong-one"))
    code, found = call()
    assert code == 3
    assert "wrong-one" not in json.dumps(found)


# ---------------------------------------------------------------- what can be chosen


def test_every_method_is_told_with_its_idea_and_where_there_is_one_its_paper() -> None:
    found = {offer.name: offer for offer in offered_methods()}
    assert list(found) == [choice.model_fields["kind"].default for choice in get_args(get_args(Method)[0])]
    assert found["solo"].paper is None
    assert {name for name, offer in found.items() if offer.paper is None} == {"solo"}
    assert found["codistillation"].paper == (
        "Anil, Pereyra, Passos, Ormandi, Dahl, Hinton, ICLR 2018, arXiv 1804.03235"
    )
    assert all(offer.idea.endswith(".") and len(offer.idea) > 20 for offer in found.values())
    recipes = [offer.name for offer in offered_recipes() if ":" not in offer.name]
    assert recipes == [choice.model_fields["kind"].default for choice in get_args(get_args(Recipe)[0])]


def test_sentences_and_citations() -> None:
    assert first_sentence("One (Hinton et al. 2015): and\n  more. `two` is another.\n\nNo.") == (
        "One (Hinton et al. 2015): and more."
    )
    assert first_sentence("By Chung et al. In all.") == "By Chung et al. In all."
    assert cited("Title: A, B, 2018.\n\nmore") == "A, B, 2018"
    assert cited("Plain training: each on its own.") is None


def test_methods_are_told_without_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None; from jobs.cli import run; sys.exit(run(['methods', '-o', 'json']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [one["name"] for one in json.loads(done.stdout)][:2] == ["solo", "label_smoothing"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_CODISTILL_COMPLETE" in script
    assert cli.run(["completion", "tcsh"]) == 2


def test_a_shell_is_told_verbs() -> None:
    asked = {"COMP_WORDS": "codistill pr", "COMP_CWORD": "1", "_CODISTILL_COMPLETE": "complete_bash"}
    command = [sys.executable, "-m", "jobs.cli"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **asked})
    assert (done.returncode, done.stdout.split()) == (0, ["priority", "prune"]), done.stderr
