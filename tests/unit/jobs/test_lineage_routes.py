"""Going on from a job over HTTP, by the client, the command and the manager; and what becomes of the parent."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codistill.run_dir import RunDir, read_json, write_json
from jobs import cli
from jobs.callers import LOCAL
from jobs.cli.exits import Exit
from jobs.cli.specs import changes_of
from jobs.client import Client
from jobs.manager import Manager
from jobs.status import State
from jobs.store_terms import ParentGone, StillNeeded, Submission
from tests.unit.jobs.fakes import FakeRunner, leave_checkpoints
from tests.unit.jobs.test_api import Service, problem
from tests.unit.jobs.test_cli import Server


class World(Service):
    """The routes, and a manager beside them."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.runner = FakeRunner(self.storage)
        lease = self.store.lease.acquire("test", 1e9)
        assert lease is not None
        self.lease = lease
        self.manager = Manager(self.store, self.runner, self.storage, lambda: self.nodes)

    def tick(self) -> None:
        self.manager.tick(self.lease)

    def parent(self, state: State = State.CANCELLED, step: int = 7, **change: Any) -> str:
        """A job that ended in `state` and left checkpoints of `step` steps."""
        job_id = self.submit(**change)
        leave_checkpoints(self.run(job_id), step)
        if state is not State.STARTING:
            self.move(job_id, state)
        return job_id

    def go_on(self, job_id: str, way: str = "resume", changes: Any = None, **more: Any) -> Any:
        return self.http.post(f"/api/v1/jobs/{job_id}/{way}", json={"changes": changes or {}}, **more)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    with world.http:
        yield world
    world.store.close()


@pytest.mark.parametrize("way", ["resume", "fork"])
def test_a_new_job_goes_on_and_needs_its_parent_until_it_has_begun(world: World, way: str) -> None:
    parent = world.parent()
    answer = world.go_on(parent, way, {"name": "again", "labels": {"try": "2"}})
    assert answer.status_code == 202, answer.text
    child = answer.json()
    assert answer.headers["location"] == f"/api/v1/jobs/{child['id']}"
    assert (child["parent"], child["name"], child["labels"]) == (parent, "again", {"try": "2"})
    assert child["spec"]["training"]["steps"] == 10
    assert [row.action for row in world.store.audit(child["id"])] == [way]
    assert [j["id"] for j in world.get("", parent=parent)["items"]] == [child["id"]]
    assert not (world.storage / child["id"]).exists(), "the manager writes, not the request"
    says = problem(world.http.delete(f"/api/v1/jobs/{parent}"), 409, "still_needed")["detail"]
    assert f"{child['id']} is to go on from it" in says
    world.tick()
    world.tick()
    assert world.runner.submitted == [(child["id"], 1)]
    place = RunDir(world.storage, child["id"]).checkpoints("replica-1") / "0000-000000000007"
    assert read_json(place / "manifest.json") == {"fence": 0, "step": 7, "files": {"values.json": {}}}
    assert world.http.delete(f"/api/v1/jobs/{parent}").status_code == 204
    assert read_json(place / "values.json") == {"replica": 1}


def test_a_second_attempt_inherits_nothing_anew(world: World) -> None:
    child = world.go_on(world.parent()).json()["id"]
    world.tick()
    world.tick()
    run = RunDir(world.storage, child)
    world.runner.begin(child, 1)
    assert len(run.inherited("checkpoints", 1)) == 2
    shutil.rmtree(run.checkpoints("replica-0") / "0000-000000000007")
    world.runner.die(child, 1)
    world.tick()
    world.manager = Manager(world.store, world.runner, world.storage, lambda: world.nodes, lambda: time.time() + 120)
    world.tick()
    assert world.runner.submitted[-1] == (child, 2)
    assert not (run.checkpoints("replica-0") / "0000-000000000007").exists()


def test_when_files_of_the_parent_were_taken_away_by_hand(world: World) -> None:
    parent = world.parent()
    child = world.go_on(parent).json()["id"]
    shutil.rmtree(world.storage / parent / "checkpoints")
    world.tick()
    world.tick()
    status = world.get(f"/{child}")["status"]
    assert (status["state"], status["reason"]["code"]) == ("FAILED", "no_checkpoint")
    shutil.rmtree(world.storage / parent)
    problem(world.go_on(parent), 409, "no_checkpoint")


def test_who_may_not_be_gone_on_from(world: World) -> None:
    problem(world.http.post("/api/v1/jobs/job-aaaaaa/resume"), 404, "no_such_job")
    world.nodes = world.nodes * 4
    live = world.parent(State.STARTING)
    assert "cancel it, or wait" in problem(world.go_on(live), 409, "not_ended")["detail"]
    never = world.submit()
    world.move(never, State.CANCELLED)
    assert "left no checkpoint" in problem(world.go_on(never, "fork"), 409, "no_checkpoint")["detail"]
    beyond = world.parent(step=9)
    short = world.go_on(beyond, "fork", {"training": {"steps": 8}})
    assert "raise training.steps" in problem(short, 409, "no_checkpoint")["detail"]


@pytest.mark.parametrize(
    ("way", "body", "path", "says"),
    [
        ("resume", {"changes": {"seed": 1}}, "seed", "(a fork may); it may change name, labels"),
        ("fork", {"changes": {"recipe": {"width": 9}}}, "recipe.width", "a fork may not change this"),
        ("resume", {"changes": {"training": {"steps": 9}}}, "training.steps", "more steps than its parent"),
        ("fork", {"changes": {"training": {"stepz": 9}}}, "training.stepz", "did you mean 'steps'"),
        ("fork", {"changes": {"training": 3}}, "training", ""),
        ("fork", {"change": {}}, "change", "the body is"),
        ("fork", {"changes": []}, "changes", "the body is"),
        ("fork", [], "", "the body is"),
    ],
    ids=str,
)
def test_bad_changes_are_named(world: World, way: str, body: Any, path: str, says: str) -> None:
    parent = world.parent()
    answer = world.http.post(f"/api/v1/jobs/{parent}/{way}", json=body)
    value = problem(answer, 422, "bad_changes")
    assert path in [error["path"] for error in value["errors"]]
    assert says in value["detail"]
    tried = problem(world.http.post(f"/api/v1/jobs/{parent}/{way}:validate", json=body), 422, "bad_changes")
    assert (tried["detail"], tried["errors"]) == (value["detail"], value["errors"])


@pytest.mark.parametrize("way", ["resume", "fork"])
def test_changes_are_tried_without_a_new_job(world: World, way: str) -> None:
    parent = world.parent()
    tried = world.go_on(parent, f"{way}:validate", {"name": "again", "priority": 3})
    assert tried.status_code == 200, tried.text
    assert [j["id"] for j in world.get("")["items"]] == [parent]
    assert tried.json()["spec"] == world.go_on(parent, way, {"name": "again", "priority": 3}).json()["spec"]
    never = world.submit()
    world.move(never, State.CANCELLED)
    problem(world.go_on(never, f"{way}:validate"), 409, "no_checkpoint")


def test_a_body_of_brackets_is_refused(world: World) -> None:
    deep = '{"changes":' + '{"a":' * 20_000 + "1" + "}" * 20_001
    answer = world.http.post(
        f"/api/v1/jobs/{world.parent()}/fork", content=deep, headers={"Content-Type": "application/json"}
    )
    problem(answer, 422, "bad_changes")


def test_what_can_never_fit_is_refused(world: World) -> None:
    answer = world.go_on(world.parent(), "resume", {"replicas": {"cpus": 64}})
    assert "lower replicas.count" in problem(answer, 422, "never_fits")["detail"]


def test_the_same_key_is_the_same_job(world: World) -> None:
    parent, headers = world.parent(), {"Idempotency-Key": "k"}
    first = world.go_on(parent, headers=headers).json()["id"]
    assert world.go_on(parent, headers=headers).json()["id"] == first
    problem(world.go_on(parent, "fork", headers=headers), 422, "idempotency_conflict")
    problem(world.go_on(parent, changes={"priority": 2}, headers=headers), 422, "idempotency_conflict")
    assert world.go_on(parent).json()["id"] != first


def test_parent_and_child_are_added_and_deleted_in_one_order(world: World) -> None:
    parent = world.store.get(world.parent())
    assert parent is not None
    child = world.store.submit(Submission(parent.spec, parent=parent.id, action="resume"))
    with pytest.raises(StillNeeded, match=f"{child.id} is to go on from it"):
        world.store.delete(parent, by=LOCAL)
    assert world.store.get(parent.id) == parent, "rolled back"
    world.store.move(child, State.CANCELLED)
    world.store.delete(parent, by=LOCAL)
    with pytest.raises(ParentGone, match="has just been deleted"):
        world.store.submit(Submission(parent.spec, parent=parent.id))


# ---------------------------------------------------------------- command and client


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(tmp_path)
    monkeypatch.setenv("CODISTILL_URL", server.url)
    yield server
    server.close()


def test_the_command_goes_on_and_takes_away(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with Client(server.url) as client:
        parent = client.submit({"training": {"steps": 10}}).id
        server.move(parent, State.ADMITTED, State.STARTING, State.CANCELLED)
        run = RunDir(server.storage, parent)
        run.create(client_spec(server, parent))
        run.start_attempt(1, 0.0)
        leave_checkpoints(run, 7)
        write_json(run.result(1), {"outcome": "cancelled"})
        assert cli.run(["resume", parent, "--set", "training.steps=12", "--set", "name=longer"]) == Exit.DONE
        child = capsys.readouterr().out.strip()
        assert child.startswith("longer-")
        assert client.show(child).value["spec"]["training"]["steps"] == 12
        forked = client.fork(parent, {"seed": 4}, key="k")
        assert client.fork(parent, {"seed": 4}, key="k").id == forked.id
        assert (forked.value["parent"], forked.value["spec"]["seed"]) == (parent, 4)
        assert cli.run(["fork", parent, "--set", "recipe.width=9"]) == Exit.USAGE
        assert "recipe.width" in capsys.readouterr().err
        assert cli.run(["resume", "job-aaaaaa"]) == Exit.JOB_NOT_FOUND
        capsys.readouterr()
        assert cli.run(["export", parent]) == Exit.DONE
        assert capsys.readouterr().out.split() == [f"{parent}/attempt-1/result.json"]
        assert json.loads((tmp_path / parent / "attempt-1" / "result.json").read_text()) == {"outcome": "cancelled"}
        assert cli.run(["export", child, "elsewhere"]) == Exit.DONE
        assert "has left nothing yet" in capsys.readouterr().err


def client_spec(server: Server, job_id: str) -> Any:
    job = server.store.get(job_id)
    assert job is not None
    return job.spec


def test_settings_are_json_or_text() -> None:
    given = ["training.steps=5", "name=a-b", "labels.x=y", "controls=[]", "training.optimizer.kind=adamw"]
    assert changes_of(given) == {
        "training": {"steps": 5, "optimizer": {"kind": "adamw"}}, "name": "a-b", "labels": {"x": "y"}, "controls": [],
    }  # fmt: skip
    for bad in ("training.steps", "=3", "a..b=1"):
        assert cli.run(["resume", "job", "--set", bad]) == Exit.USAGE
