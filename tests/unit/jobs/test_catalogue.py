"""What a spec can name, over the real routes: against the spec's own types, real data sets and exports on the disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from starlette.testclient import TestClient

from codistill.capacity import Node
from codistill.run_dir import RunDir, write_json
from codistill.spec import KnowledgeDistillation, Method, Recipe
from codistill.spec_errors import parse_spec
from jobs.callers import LOCAL, Caller, Scope
from jobs.door import DoorRules
from jobs.job import Job
from jobs.routes import build_api
from jobs.routes.backend import Backend
from jobs.status import State
from jobs.store import Store
from jobs.store_terms import Submission
from tests.datasets import write_images
from tests.stores import new_store
from tests.unit.jobs.fakes import result, spec


class Offering:
    """A service with a data home of its own, and tokens for ann and bob."""

    def __init__(self, root: Path) -> None:
        self.home, self.storage = root / "data", root / "runs"
        self.home.mkdir()
        self.storage.mkdir()
        self.store = Store.open(new_store(root))
        rules = DoorRules(needs_token=True)
        backend = Backend(self.store, self.storage, lambda: [Node(8.0, 0.0)], rules, data_home=self.home)
        self.http = TestClient(build_api(backend), "http://127.0.0.1")
        self.tokens = {
            who: self.store.accounts.create(who, scope, lifetime_s=None, by=LOCAL)[1]
            for who, scope in (("ann", Scope.READ), ("bob", Scope.READ), ("root", Scope.ADMIN))
        }

    def ask(self, path: str, who: str = "ann", status: int = 200, **params: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.tokens[who]}"}
        answer = self.http.get(f"/api/v1/{path}", headers=headers, params=params)
        assert answer.status_code == status, answer.text
        assert str(self.home) not in answer.text, "no path is told"
        assert str(self.storage) not in answer.text
        return answer.json()

    def ended(self, owner: str, *exported: str, to: State = State.SUCCEEDED, **change: Any) -> Job:
        job = self.store.submit(Submission(spec(**change), Caller(owner, Scope.WRITE)))
        job = self.store.move(self.store.move(job, State.ADMITTED), State.STARTING, fence=1)
        run = RunDir(self.storage, job.id)
        run.create(job.spec)
        run.start_attempt(1, 0.0)
        for index, replica in enumerate(exported):
            directory = run.export(replica)
            directory.mkdir(parents=True)
            (directory / "model.safetensors").write_bytes(b"weights" * (index + 1))
            write_json(directory / "manifest.json", {"sha256": {"model.safetensors": f"{index}" * 64}})
        metrics = {"eval/accuracy": 0.75, "eval/loss": 1.5}
        value = result(job.id, 1, "succeeded")
        value["replicas"] = {replica: {"metrics": metrics} for replica in exported}
        write_json(run.result(1), value)
        return self.store.move(job, to)


@pytest.fixture
def offering(tmp_path: Path) -> Iterator[Offering]:
    made = Offering(tmp_path)
    with made.http:
        yield made
    made.store.close()


@pytest.mark.parametrize(("path", "union", "key"), [("methods", Method, "method"), ("recipes", Recipe, "recipe")])
def test_every_choice_is_told_as_the_spec_has_it(offering: Offering, path: str, union: Any, key: str) -> None:
    items = {item["name"]: item for item in offering.ask(path)["items"] if ":" not in item["name"]}
    choices = {choice.model_fields["kind"].default: choice for choice in get_args(get_args(union)[0])}
    assert list(items) == list(choices)
    for kind, choice in choices.items():
        item = items[kind]
        assert item["options"] == choice.model_json_schema()
        required = {name for name, field in choice.model_fields.items() if field.is_required()}
        assert item["defaults"].keys() == choice.model_fields.keys() - required - {"kind"}
        assert item["idea"].endswith(".")
        if not required:  # its defaults, said aloud, are the choice itself
            told = {**item["spec"], **item["defaults"]}
            assert choice.model_validate_json(json.dumps(told)) == choice()
            assert choice.model_validate_json(json.dumps(item["spec"])) == choice()
    assert all(item["paper"] is None for item in items.values()) is (key == "recipe")


def test_an_installed_recipe_is_told_by_its_name(offering: Offering) -> None:
    from jobs.offered import _installed

    class Entry:
        name, value, dist, module = "tumours", "a.module:function", None, "a"

    offer = _installed(Entry())  # type: ignore[arg-type]
    assert (offer.name, offer.spec) == ("installed: tumours", {"kind": "installed", "name": "tumours"})
    assert offer.idea == "From the package a."
    assert parse_spec({"recipe": {**offer.spec, "options": {}}}).recipe.kind == "installed"


def test_data_sets_by_name_digest_and_size(offering: Offering, caplog: pytest.LogCaptureFixture) -> None:
    assert offering.ask("datasets") == {"items": [], "unreadable": []}
    made = write_images(offering.home, "mine", side=7, classes=3)
    (offering.home / "spoilt").mkdir()
    (offering.home / "spoilt" / "dataset.json").write_text("{")
    answer = offering.ask("datasets")
    (found,) = answer["items"]
    assert found["name"] == "mine"
    assert found["digest"] == made.card.digest
    assert found["rows"] == {part: split.rows for part, split in made.card.splits.items()}
    assert found["bytes"] == sum(path.stat().st_size for path in (offering.home / "mine").glob("*.parquet"))
    assert answer["unreadable"] == ["spoilt"]
    assert "data set spoilt" in caplog.text
    (offering.home / "registry.json").write_text("{")
    for path in ("datasets", "models"):
        assert offering.ask(path, status=503)["code"] == "catalogue_unavailable"


def test_models_are_those_of_the_caller_that_have_ended_whole(offering: Offering) -> None:
    both = offering.ended("ann", "replica-0", "replica-1")
    offering.ended("bob", "replica-0")
    control = offering.ended("ann", "replica-1", "solo-0", controls=("solo",))
    half = offering.ended("ann", "replica-0")
    (RunDir(offering.storage, half.id).export("replica-0") / "manifest.json").unlink()
    going = offering.ended("ann", "replica-0", to=State.RUNNING)
    items = offering.ask("models")["items"]
    assert [(item["job"], item["replica"]) for item in items] == [
        (control.id, "replica-1"), (both.id, "replica-0"), (both.id, "replica-1"),
    ]  # fmt: skip
    assert items[1] == {
        "job": both.id, "replica": "replica-0", "recipe": "digits", "sha256": "0" * 64, "bytes": 7,
        "metrics": {"eval/accuracy": 0.75, "eval/loss": 1.5},
        "spec": {"kind": "job", "job": both.id, "replica": 0},
    }  # fmt: skip
    method = {"kind": "knowledge_distillation", "teacher": items[2]["spec"]}
    parsed = parse_spec({"method": method, "replicas": {"count": 1}}).method
    assert isinstance(parsed, KnowledgeDistillation)
    assert parsed.teacher.model_dump() == {"kind": "job", "job": both.id, "replica": 1}
    assert len(offering.ask("models", "bob")["items"]) == 1
    everybodys = offering.ask("models", "root")["items"]
    assert len(everybodys) == 4
    assert going.id not in {item["job"] for item in everybodys}


def test_models_come_in_pages_of_jobs(offering: Offering) -> None:
    ids = [offering.ended("ann", *exported).id for exported in (("replica-0",), (), ("replica-0",))]
    seen: list[str] = []
    cursor: dict[str, Any] = {}
    pages = 0
    while True:
        page = offering.ask("models", limit=1, **cursor)
        seen += [item["job"] for item in page["items"]]
        pages += 1
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert (seen, pages) == ([ids[2], ids[0]], 3)


def test_registered_models_are_told_by_name(offering: Offering, tmp_path: Path) -> None:
    there = tmp_path / "elsewhere"
    there.mkdir()
    for name in ("config.json", "model.safetensors"):
        (there / name).write_text("{}")
    write_json(there / "manifest.json", {"sha256": {"model.safetensors": "a" * 64}})
    models = {"served": str(there), "gone": str(tmp_path / "nowhere")}
    write_json(offering.home / "registry.json", {"format_version": 1, "data": {}, "models": models})
    found = offering.ask("models", "bob")
    assert found["registered"] == [
        {"name": "gone", "sha256": None, "spec": {"kind": "model", "name": "gone"}},
        {"name": "served", "sha256": "a" * 64, "spec": {"kind": "model", "name": "served"}},
    ]
    assert str(there) not in json.dumps(found)
