"""`codistill serve --on`: what it asks of a cluster that is somebody else's."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.schema import LoggingConfig

from jobs import serve as service
from jobs.cli import server
from jobs.cli.exits import CommandError, Exit
from jobs.errors import HeadError
from jobs.one_service import OWN_HEAD, Holder, holder
from jobs.serve_settings import Listen, Settings
from tests.unit.jobs.conftest import Call

LISTEN = Listen("0.0.0.0", 8700, ("localhost",), needs_token=True)


def test_both_parts_are_pinned_to_the_node_of_the_service() -> None:
    bound = service.application(Settings("sqlite://", "/runs", "/data", LISTEN), "0f" * 28)
    api: Any = bound._bound_deployment
    manager = api.init_args[1]._bound_deployment
    assert (api.name, manager.name) == ("api", "manager")
    for part in (api, manager):
        assert part.ray_actor_options["label_selector"] == {"ray.io/node-id": "0f" * 28}
        assert part.ray_actor_options["num_cpus"] == 0


def test_requests_are_logged_by_the_proxy_alone() -> None:
    """Serve's own would write each again, and Ray's log monitor would read it."""
    bound: Any = service.application(Settings("sqlite://", "/runs", "/data", LISTEN), "0f" * 28)._bound_deployment
    assert LoggingConfig(**bound._deployment_config.logging_config).enable_access_log is False


@pytest.mark.parametrize("needs_token", [True, False])
def test_no_one_caller_has_all_that_a_copy_of_the_api_takes(needs_token: bool) -> None:
    bound: Any = service.application(Settings("sqlite://", "/runs", "/data", LISTEN), "0f" * 28)._bound_deployment
    rules = service.rules_of(Listen("127.0.0.1", 8700, ("localhost",), needs_token))
    assert (rules.needs_token, rules.hosts) == (needs_token, {"localhost"})
    assert rules.open_at_once == (40 if needs_token else 150)
    assert bound._deployment_config.max_ongoing_requests >= rules.open_at_once + 50


def test_a_machine_that_is_no_node_is_told_how_to_become_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ray._private.services.find_node_ids", set[str])
    with pytest.raises(HeadError, match=r"ray start --address=head:6379 --num-cpus=0"):
        service.attach("head:6379", tmp_path)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """What is asked of Serve, in order; the command ends as soon as it serves."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    asked: list[str] = []
    monkeypatch.setenv("CODISTILL_HOME", str(tmp_path))
    for name in ("attach", "withdraw", "deploy"):
        monkeypatch.setattr(service, name, lambda *_, name=name: asked.append(name))
    monkeypatch.setattr(server, "_refuse_taken", lambda port: asked.append(f"is {port} free"))
    monkeypatch.setattr(server, "_wait_ready", lambda *_: None)
    monkeypatch.setattr(server, "_until_ended", lambda *_: None)
    yield asked
    for number, handler in before.items():
        signal.signal(number, handler)


def serve_on(tmp_path: Path) -> Any:
    settings = Settings("sqlite://", str(tmp_path), "/data", LISTEN)
    return server._serve_on("head:6379", settings, restart=False, own=None)


@pytest.mark.parametrize("left", [False, True])
def test_what_a_killed_command_left_is_taken_off_before_the_port_is_looked_at(
    done: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, left: bool
) -> None:
    monkeypatch.setattr(service, "is_served", lambda: left)
    assert serve_on(tmp_path) == Exit.DONE
    assert done == ["attach", *(["withdraw"] if left else []), "is 8700 free", "deploy", "withdraw"]


def test_a_cluster_that_cannot_be_joined_is_3(done: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise HeadError("this machine is no node of it")

    monkeypatch.setattr(service, "attach", refuse)
    with pytest.raises(CommandError, match="head:6379: this machine is no node of it") as refused:
        serve_on(tmp_path)
    assert (refused.value.code, done) == (Exit.UNAVAILABLE, [])


@pytest.mark.parametrize("others", [set[str](), {"theirs"}])
def test_other_applications_of_serve_are_left_alone(monkeypatch: pytest.MonkeyPatch, others: set[str]) -> None:
    asked: list[str] = []
    applications = dict.fromkeys({"codistill", *others})
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications=applications))
    monkeypatch.setattr("ray.serve.delete", lambda name: asked.append(name))
    monkeypatch.setattr("ray.serve.shutdown", lambda: asked.append("all of it"))
    service.withdraw()
    assert asked == (["codistill"] if others else ["all of it"])


@pytest.mark.parametrize(("words", "cluster"), [([], OWN_HEAD), (["--on", "head:6379"], "head:6379")])
def test_others_are_told_where_it_serves_from(
    call_at_home: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], cluster: str
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(server, "_refuse_silent", lambda _address: None)
    monkeypatch.setattr(server, "_own_head", lambda *_: (SimpleNamespace(address="127.0.0.1:1"), False))
    monkeypatch.setattr(server, "_serve_on", lambda *_, **__: seen.append(holder(tmp_path / "home")) or Exit.DONE)
    code, _, err = call_at_home("serve", *words)
    assert (code, seen) == (Exit.DONE, [Holder(os.getpid(), cluster)]), err
