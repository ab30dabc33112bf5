"""Verbs that look after the queue and what is left of jobs, and the filters of `list`; on a real socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from codistill.spec import JobSpec
from jobs import cli
from jobs.callers import Caller, Scope
from jobs.cli import manage, retry
from jobs.cli.exits import CommandError
from jobs.cli.service import labels_of, since_when
from jobs.client import Client, ServiceRefused
from jobs.job import Reason
from jobs.retention import DAY_S, Past, is_kept, prunable
from jobs.status import State
from jobs.store_terms import Submission
from tests.unit.jobs.test_cli import Server

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(tmp_path)
    monkeypatch.setenv("CODISTILL_URL", server.url)
    monkeypatch.setenv("CODISTILL_HOME", str(tmp_path / "home"))
    yield server
    server.close()


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*words: str) -> tuple[int, str, str]:
        code = cli.run(list(words))
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return run


def test_the_queue_says_who_waits_and_why(service: Server, call: Call) -> None:
    first, second = (service.store.create(JobSpec(name=name)) for name in ("one", "two"))
    service.store.explain_wait(first, Reason("no_room_yet", "waits for room: 2 CPUs"))
    code, out, err = call("queue")
    lines = [line.split(maxsplit=3) for line in out.splitlines()]
    assert (code, lines[1:]) == (
        0,
        [["1", first.id, "0", "waits for room: 2 CPUs"], ["2", second.id, "0", "waits behind 1 other"]],
    )
    assert "2 waiting; reserved: 0 of 2 CPUs" in err
    code, _, err = call("priority", second.id, "5")
    assert (code, "has priority 5, and place 1" in err) == (0, True)
    assert call("priority", first.id, "--", "-5")[0] == 0
    found = json.loads(call("queue", "-o", "json")[1])
    assert [(item["id"], item["priority"]) for item in found["items"]] == [(second.id, 5), (first.id, -5)]
    assert call("priority", first.id, "101")[0] == 2
    service.move(first.id, State.ADMITTED)
    code, _, err = call("priority", first.id, "1")
    assert (code, "only of one that is QUEUED" in err) == (3, True)


def test_delete_asks_and_needs_an_end(service: Server, call: Call) -> None:
    job = service.store.create(JobSpec())
    (service.storage / job.id).mkdir()
    code, _, err = call("delete", job.id)
    assert (code, "--yes" in err) == (2, True)
    assert service.store.get(job.id) is not None
    code, _, err = call("delete", job.id, "--yes")
    assert (code, "cancel it first" in err) == (3, True)
    service.move(job.id, State.CANCELLED)
    assert call("delete", job.id, "--yes")[0] == 0
    assert service.store.get(job.id) is None
    assert not (service.storage / job.id).exists()
    assert call("delete", job.id, "--yes")[0] == 102


def test_prune_shows_first_and_keeps_what_is_to_be_kept(service: Server, call: Call) -> None:
    ended = [service.store.create(JobSpec(name=name)) for name in ("old", "older")]
    kept = service.store.create(JobSpec(name="kept", labels={"keep": "yes"}))
    team = service.store.create(JobSpec(name="team", labels={"team": "a"}))
    alive = service.store.create(JobSpec(name="alive"))
    for job in (*ended, kept, team):
        service.move(job.id, State.CANCELLED)
    (service.storage / ended[0].id).mkdir()
    code, out, err = call("prune", "--days", "0", "--keep", "team=a")
    assert (code, [line.split()[0] for line in out.splitlines()[1:]]) == (0, [job.id for job in ended])
    assert "2 of 5 jobs" in err
    assert "nothing is deleted" in err
    assert len(service.store.page(limit=9)) == 5
    assert call("prune", "--days", "0", "--keep", "team=a", "--delete")[0] == 2, "no terminal to ask at"
    assert len(service.store.page(limit=9)) == 5
    assert [job["id"] for job in json.loads(call("prune", "--days", "0", "-o", "json")[1])] == [
        *(job.id for job in ended),
        team.id,
    ]
    assert call("prune", "--days", "1", "--delete", "--yes")[2].startswith("0 of 5 jobs")
    assert "2 of 2 deleted" in call("prune", "--days", "0", "--keep", "team=a", "--delete", "--yes")[2]
    assert {job.id for job in service.store.page(limit=9)} == {kept.id, team.id, alive.id}
    assert not (service.storage / ended[0].id).exists()
    assert [row.action for row in service.store.audit(ended[0].id)] == ["submit", "delete"]


def test_prune_waits_where_the_service_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    slept: list[float] = []

    class Slow:
        def delete(self, job_id: str) -> None:
            asked.append(job_id)
            if len(asked) == 2:
                raise ServiceRefused(429, "too_many_requests", "wait", retry_after_s=6.0)
            if job_id == "c":
                raise ServiceRefused(404, "no_such_job", "another was faster")
            if job_id == "d":
                raise ServiceRefused(409, "still_needed", "another job goes on from it")

    monkeypatch.setattr(retry.time, "sleep", slept.append)
    slow: Any = Slow()
    assert manage._delete_all(slow, ["a", "b", "c", "d", "e"]) == 3
    assert (asked, slept) == (["a", "b", "b", "c", "d", "e"], [6.0])
    assert capsys.readouterr().err.count("waiting") == 1


def test_usage_is_printed_by_owner(service: Server, call: Call) -> None:
    code, out, err = call("usage")
    assert (code, out) == (0, "")
    assert "codistill queue" in err
    job = service.store.create(JobSpec(replicas={"count": 2}))  # type: ignore[arg-type]
    service.move(job.id, State.ADMITTED, State.STARTING, State.RUNNING)
    code, out, _ = call("usage")
    assert [line.split() for line in out.splitlines()] == [
        ["OWNER", "JOBS", "CPU-HOURS", "GPU-HOURS", "STORED"],
        ["local", "1", "0.00", "0.00", "0", "B"],
    ]
    found = json.loads(call("usage", "-o", "json", "--since", "1d", "--owner", "local")[1])
    assert found["items"][0]["jobs"] == 1
    assert 0 < found["items"][0]["cpu_hours"] < 0.1
    assert json.loads(call("usage", "-o", "json", "--owner", "bob")[1])["items"] == []
    assert call("usage", "--since", "yesterday")[0] == 2
    shown = call("show", job.id)[1]
    assert "deadlines: end by 20" in shown
    assert "reserved: 0.00 CPU-hours, 0.00 GPU-hours" in shown


NOW = datetime(2026, 11, 20, tzinfo=UTC)


def item(job_id: str, days: float | None, *, parent: str | None = None, **labels: str) -> dict[str, Any]:
    ended = None if days is None else (NOW - timedelta(days=days)).isoformat()
    state = "RUNNING" if days is None else "FAILED"
    return {"id": job_id, "status": {"state": state}, "labels": labels, "ended_at": ended, "parent": parent}


@pytest.mark.parametrize(
    ("items", "found"),
    [
        ([item("a", 9.99), item("b", 10), item("c", 11)], ["c", "b"]),
        ([item("a", None), item("b", 20, keep=""), item("c", 20, team="x")], ["c"]),
        ([item("a", 20, team="a")], []),
        # What goes on from another needs it, and that one the one before.
        ([item("c", 1, parent="b"), item("b", 20, parent="a"), item("a", 30)], []),
        ([item("c", 12, parent="b"), item("b", 20, parent="a"), item("a", 30)], ["a", "b", "c"]),
        ([item("c", None, parent="b"), item("b", 20), item("a", 30)], ["a"]),
    ],
)
def test_what_may_go(items: list[dict[str, Any]], found: list[str]) -> None:
    jobs = list(map(Past.of_item, items))
    assert prunable(jobs, now=NOW.timestamp(), older_than_s=10 * DAY_S, keep={"team": "a"}) == found


def test_a_label_keeps_with_any_value_or_with_one() -> None:
    assert is_kept({"keep": ""}, {"keep": None})
    assert not is_kept({"team": "b"}, {"team": "a"})
    assert not is_kept({}, {"keep": None})


def test_list_shows_what_was_asked_for(service: Server, call: Call) -> None:
    bob = Caller("bob", Scope.WRITE)
    a = service.store.create(JobSpec(name="a", labels={"team": "x", "run": "1"}))
    b = service.store.create(JobSpec(name="b", labels={"team": "x"}))
    c = service.store.submit(Submission(JobSpec(name="c"), bob))
    service.move(a.id, State.CANCELLED)
    service.move(b.id, State.ADMITTED)

    def listed(*words: str) -> list[str]:
        return [found["name"] for found in json.loads(call("list", "-o", "json", *words)[1])["items"]]

    assert listed() == ["c", "b", "a"]
    assert listed("--state", "CANCELLED", "--state", "ADMITTED") == ["b", "a"]
    assert listed("--label", "team=x", "--label", "run=1") == ["a"]
    assert listed("--owner", "bob") == ["c"]
    assert listed("--name", "b") == ["b"]
    assert listed("--since", "1d") == ["c", "b", "a"]
    assert listed("--since", "2999-01-01") == []
    assert yaml.safe_load(call("list", "-o", "yaml", "--name", "c")[1])["items"][0]["id"] == c.id
    assert yaml.safe_load(call("show", c.id, "-o", "yaml")[1])["owner"] == "bob"
    code, _, err = call("list", "--since", "yesterday")
    assert (code, "36h" in err) == (2, True)
    code, _, err = call("list", "--label", "team")
    assert (code, "KEY=VALUE" in err) == (2, True)


def test_times_and_labels_are_read_as_they_are_meant() -> None:
    assert since_when("36h", NOW) == "2026-11-18T12:00:00+00:00"
    assert since_when("90m", NOW) == "2026-11-19T22:30:00+00:00"
    assert since_when("7d", NOW) == "2026-11-13T00:00:00+00:00"
    assert since_when("2026-11-01", NOW) == "2026-11-01T00:00:00+00:00"
    assert since_when("2026-11-01T10:00:00+02:00", NOW) == "2026-11-01T10:00:00+02:00"
    assert since_when("999999d", NOW) < "2010"
    assert labels_of(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    with pytest.raises(CommandError, match="KEY=VALUE"):
        labels_of(["=x"])


def test_the_client_asks_for_all_pages(service: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs import conversation

    ids = [service.store.create(JobSpec()).id for _ in range(5)]
    real = conversation.page
    monkeypatch.setattr(conversation, "page", lambda wanted, _limit, cursor: real(wanted, 2, cursor))
    with Client(service.url) as client:
        assert [found["id"] for found in client.every()] == ids[::-1]
