"""The run directory: ids, specs, attempts, and storage that will not do."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codistill.run_dir import ID_PATTERN, RunDir, StorageError, read_json, write_json
from tests.support import new_run, small_spec


@given(st.text())
def test_no_text_leads_out_of_the_storage(text: str) -> None:
    storage = Path("/storage")
    try:
        root = RunDir(storage, text).root
    except ValueError:
        assert not ID_PATTERN.fullmatch(text)
    else:
        assert root.parent == storage
        assert root.resolve() == root


@pytest.mark.parametrize("bad", ["", "..", "a/b", "a\n", "/etc", "A", "a" * 64, "-a", "a.b", "a\x00"])
def test_what_is_no_id(bad: str) -> None:
    with pytest.raises(ValueError, match="is not an id"):
        RunDir(Path("/storage"), bad)


def test_a_job_is_created_once(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "job")
    run.create(small_spec())
    run.create(small_spec())
    assert run.read_spec() == small_spec()
    with pytest.raises(StorageError, match="already holds a job with another spec; choose another name"):
        run.create(small_spec(seed=2))


def test_storage_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"storage .*missing does not exist; create it"):
        RunDir(tmp_path / "missing", "job").create(small_spec())
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="does not exist"):
        RunDir(tmp_path / "file", "job").create(small_spec())
    with pytest.raises(StorageError, match="holds no job"):
        RunDir(tmp_path, "job").read_spec()


def test_a_format_from_elsewhere_is_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "job")
    run.create(small_spec())
    write_json(run.root / "format_version", 9)
    with pytest.raises(StorageError, match="has format 9; this version reads format 1"):
        run.read_spec()


def test_fences_only_rise(tmp_path: Path) -> None:
    run = new_run(tmp_path, small_spec())
    run.start_attempt(3, 0.0)
    assert run.fences() == [1, 3]
    for stale in (1, 2, 3):
        with pytest.raises(StorageError, match=f"attempt {stale} of job may not start: attempt 3 exists already"):
            run.start_attempt(stale, 0.0)


def test_incarnations_are_counted_per_attempt(tmp_path: Path) -> None:
    run = new_run(tmp_path, small_spec())
    assert [run.next_incarnation(1, "replica-0") for _ in range(3)] == [0, 1, 2]
    assert run.next_incarnation(1, "replica-1") == 0
    run.start_attempt(2, 0.0)
    assert run.next_incarnation(2, "replica-0") == 0


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}
    assert read_json(tmp_path / "none.json") is None


def test_what_cannot_be_read_just_now_is_as_if_it_were_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where the file that another node has just replaced is stale."""
    run = new_run(tmp_path, small_spec())
    assert run.read_heartbeats(1) == {}
    run.heartbeat(1, "replica-0").mkdir(parents=True)
    write_json(run.heartbeat(1, "replica-1"), {"step": 1})
    assert run.read_heartbeats(1) == {"replica-1": {"step": 1}}, "and those after it are read"
    run.request_stop(1)
    assert run.stop_requested(1)

    def stale(_: Path) -> bool:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "exists", stale)
    assert not run.stop_requested(1)
