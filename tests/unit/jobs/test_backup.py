"""A copy of a store that is being written to, and the way back."""

from __future__ import annotations

import re
import sqlite3
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from codistill.spec import JobSpec
from jobs.backups import back_up, jobs_in, postgres_command, put_back
from jobs.errors import StoreError
from jobs.one_service import OWN_HEAD, only_one
from jobs.status import State
from jobs.store import Store

Call = Callable[..., tuple[int, str, str]]


def open_store(path: Path) -> Store:
    return Store.open(f"sqlite:///{path}")


def test_a_copy_is_of_one_moment_while_others_write(tmp_path: Path) -> None:
    store, stop = open_store(tmp_path / "jobs.db"), threading.Event()
    first = store.create(JobSpec(name="first"))

    def write() -> None:
        while not stop.is_set():
            store.create(JobSpec())

    writer = threading.Thread(target=write)
    writer.start()
    try:
        counts = [back_up(tmp_path / "jobs.db", tmp_path / f"copy-{i}") for i in range(3)]
    finally:
        stop.set()
        writer.join()
    store.close()
    assert counts == sorted(counts)
    for i, count in enumerate(counts):
        assert stat.S_IMODE((tmp_path / f"copy-{i}").stat().st_mode) == 0o600
        copy = open_store(tmp_path / f"copy-{i}")
        jobs = copy.page(limit=100_000)
        assert (len(jobs), jobs[-1].id) == (count, first.id)
        assert all(len(copy.transitions(job.id)) == 1 for job in jobs)
        copy.close()
    assert not list(tmp_path.glob("*.part"))


def test_there_and_back(call_at_home: Call, tmp_path: Path) -> None:
    path = tmp_path / "home" / "service" / "jobs.db"
    code, _, err = call_at_home("backup", str(tmp_path / "copy"))
    assert (code, "no store" in err) == (3, True)
    path.parent.mkdir(parents=True, exist_ok=True)
    store = open_store(path)
    job = store.create(JobSpec(name="kept"))
    code, out, err = call_at_home("backup", str(tmp_path / "copy"))
    assert (code, out.strip(), err.startswith("1 jobs")) == (0, str(tmp_path / "copy"), True)
    code, _, err = call_at_home("backup", str(tmp_path / "copy"))
    assert (code, "name a new file" in err) == (3, True)
    store.move(job, State.CANCELLED)
    later = store.create(JobSpec(name="later"))
    store.close()
    assert call_at_home("restore", str(tmp_path / "copy"))[0] == 2, "no terminal to ask at"
    with only_one(tmp_path / "home", OWN_HEAD):
        code, _, err = call_at_home("restore", str(tmp_path / "copy"), "--yes")
        assert (code, "end it first" in err) == (3, True)
    assert call_at_home("restore", str(tmp_path / "copy"), "--yes")[0] == 0
    store = open_store(path)
    found = store.get(job.id)
    assert found is not None
    assert (found.state, store.get(later.id)) == (State.QUEUED, None)
    store.close()
    (before,) = path.parent.glob("jobs.db.before-*")
    assert jobs_in(before) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_a_killed_service_left_in_its_log_is_kept_beside(tmp_path: Path) -> None:
    store = open_store(tmp_path / "jobs.db")
    store.create(JobSpec())
    back_up(tmp_path / "jobs.db", tmp_path / "copy")
    store.create(JobSpec())
    killed = tmp_path / "killed"
    killed.mkdir()
    for path in tmp_path.glob("jobs.db*"):  # the file, and the write-ahead log that nobody has folded into it
        (killed / path.name).write_bytes(path.read_bytes())
    store.close()
    kept = put_back(tmp_path / "copy", killed / "jobs.db")
    assert kept is not None
    assert (jobs_in(kept.path), jobs_in(killed / "jobs.db"), kept.as_it_was) == (2, 1, False)


@pytest.mark.parametrize("is_a_store", [True, False])
def test_a_damaged_store_gives_way_and_is_kept_as_it_was(call_at_home: Call, tmp_path: Path, is_a_store: bool) -> None:
    path = tmp_path / "home" / "service" / "jobs.db"
    path.parent.mkdir(parents=True)
    store = open_store(path)
    store.create(JobSpec())
    assert call_at_home("backup", str(tmp_path / "copy"))[0] == 0
    store.close()
    files = {"": damaged(path.read_bytes()) if is_a_store else b"text " * 1000, "-wal": b"what was", "-shm": b"in use"}
    for ending, data in files.items():
        path.with_name(path.name + ending).write_bytes(data)
    code, _, err = call_at_home("restore", str(tmp_path / "copy"), "--yes")
    assert (code, "has 1 jobs now" in err, "files as they were" in err) == (0, True, True)
    assert jobs_in(path) == 1
    (before,) = path.parent.glob("jobs.db.before-*[0-9]")
    assert f"is in {before}" in err
    kept = {ending: before.with_name(before.name + ending).read_bytes() for ending in ("", "-wal")}
    assert kept == {ending: files[ending] for ending in kept}
    assert sorted(path.name for path in path.parent.glob("jobs.db-*")) == []


def test_a_service_whose_command_was_killed_is_noticed(call_at_home: Call, tmp_path: Path) -> None:
    path = tmp_path / "home" / "service" / "jobs.db"
    path.parent.mkdir(parents=True)
    store = open_store(path)
    assert call_at_home("backup", str(tmp_path / "copy"))[0] == 0
    store.create(JobSpec())
    assert store.lease.acquire("manager", 30.0) is not None
    code, _, err = call_at_home("restore", str(tmp_path / "copy"), "--yes")
    assert (code, jobs_in(path)) == (3, 1)
    assert "end it with codistill down" in err
    assert re.search(r"wait (29|30) s", err)
    store.lease.release("manager")
    store.close()
    assert call_at_home("restore", str(tmp_path / "copy"), "--yes")[0] == 0
    assert jobs_in(path) == 0


def damaged(store: bytes) -> bytes:
    data = bytearray(store)
    for page in range(8192, len(data), 4096):
        data[page : page + 64] = b"\xff" * 64
    return bytes(data)


def test_what_is_no_backup_changes_nothing(call_at_home: Call, tmp_path: Path) -> None:
    path = tmp_path / "home" / "service" / "jobs.db"
    path.parent.mkdir(parents=True)
    store = open_store(path)
    store.create(JobSpec())
    store.close()
    before = path.read_bytes()
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE x (y)")
    (tmp_path / "text").write_text("text " * 1000)
    (tmp_path / "damaged").write_bytes(damaged(before))
    for name in ("other", "text", "damaged", "missing"):
        with pytest.raises(StoreError, match=name):
            put_back(tmp_path / name, path)
        assert call_at_home("restore", str(tmp_path / name), "--yes")[0] == 3
    assert path.read_bytes() == before
    assert len(list(path.parent.glob("jobs.db*"))) == 1


def test_postgresql_has_its_own_way(call_at_home: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODISTILL_DATABASE", "postgresql+psycopg://ann:secret@db:6000/codistill")
    code, _, err = call_at_home("backup", "a b")
    assert code == 2
    assert "pg_dump --host=db --port=6000 --username=ann --dbname=codistill --format=custom '--file=a b'" in err
    code, _, err = call_at_home("restore", "f", "--yes")
    assert (code, "pg_restore" in err, "secret" in err) == (2, True, False)
    socket = postgres_command("postgresql:///jobs?host=/run/pg", Path("f"), restore=True)
    assert socket == "pg_restore --host=/run/pg --dbname=jobs --clean --if-exists --single-transaction f"
