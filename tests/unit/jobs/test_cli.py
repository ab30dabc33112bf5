"""The command: exit codes, what goes where, and no traceback whatever happens."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from codistill.capacity import Node
from codistill.run_dir import RunDir, write_json
from codistill.spec import JobSpec
from codistill.spec_files import load_spec
from jobs import cli
from jobs.cli import demo, demo_service, local
from jobs.cli.exits import CommandError, Exit, exit_of
from jobs.cli.watch import LineReporter
from jobs.client import Client, RemoteJob, ServiceRefused, ServiceUnreachable
from jobs.head import free_ports
from jobs.job import Reason
from jobs.routes import build_api
from jobs.routes.backend import Backend
from jobs.status import State
from jobs.store import Store
from tests.datasets import write_images
from tests.stores import new_store
from tests.unit.jobs.fakes import beat

EXAMPLES = Path(cli.__file__).parents[1] / "examples"
SPEC = str(EXAMPLES / "digits-pair.toml")


class Server:
    """The routes on a real socket, in a thread of this process."""

    def __init__(self, root: Path) -> None:
        self.storage = root / "runs"
        self.storage.mkdir()
        self.store = Store.open(new_store(root))
        app = build_api(Backend(self.store, self.storage, lambda: [Node(2.0, 0.0)]))
        self._uvicorn = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none", lifespan="off"))
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._uvicorn.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        while not self._uvicorn.started:
            time.sleep(0.01)

    def close(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(10)
        self._socket.close()
        self.store.close()

    def move(self, job_id: str, *states: State, reason: Reason | None = None) -> None:
        for state in states:
            job = self.store.get(job_id)
            assert job is not None
            self.store.move(job, state, reason=reason, fence=1 if state is State.STARTING else None)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(tmp_path)
    monkeypatch.setenv("CODISTILL_URL", server.url)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CODISTILL_URL", "http://127.0.0.1:9")  # nobody lives there
    monkeypatch.delenv("CODISTILL_LOG_LEVEL", raising=False)


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = cli.run(list(words))
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return code, said.out, said.err


# ---------------------------------------------------------------- without a service


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda p: p.name)
def test_every_example_is_a_valid_spec(path: Path) -> None:
    assert isinstance(load_spec(path), JobSpec)
    assert path.read_text().startswith("# ")


def test_there_are_examples() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.toml")}
    assert names >= {"digits-solo", "digits-pair", "digits-ring", "images-pair", "text-pair", "tabular-pair"}


BAD_USAGE = [
    ["nonsense"],
    ["submit"],
    ["list", "--limit", "0"],
    ["list", "--state", "LOST"],
    ["show"],
    ["show", "x", "-o", "xml"],
    ["run", SPEC, "--name", "No Id"],
    ["run", SPEC, "--on", "nowhere"],
    ["serve", "--port", "99999"],
    ["init", "spec.yaml"],
]


@pytest.mark.parametrize("words", BAD_USAGE, ids=" ".join)
def test_bad_usage_is_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, *words)
    assert (code, out) == (Exit.USAGE, "")
    assert err


@pytest.mark.parametrize("verb", ["validate", "submit", "run"])
@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("missing.toml", None, "cannot read"),
        ("bad.toml", "a = = 1", "is not valid TOML"),
        ("bad.toml", "[training]\nstepz = 3", "training.stepz: unknown key; did you mean 'steps'?"),
        ("bad.json", "[1]", "should be an object"),
        ("spec.ini", "a: 1", "ends in .toml, .yaml, .yml, .json"),
    ],
)
def test_bad_specs_are_2_with_a_sentence(
    verb: str, name: str, text: str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    code, out, err = call(capsys, verb, str(path))
    assert (code, out) == (Exit.USAGE, "")
    assert says in err
    assert not (tmp_path / "home").exists()  # nothing half-written


def test_validate_prints_the_resolved_spec(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "validate", SPEC)
    assert code == 0
    assert json.loads(out)["limits"]["max_failures"] == 3
    assert "is valid" in err


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "schema")
    assert code == 0
    assert json.loads(out)["additionalProperties"] is False


def test_files_are_merged_and_settings_go_over_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("training: {steps: 7}\n")
    code, out, err = call(capsys, "validate", SPEC, str(over), "--set", "seed=5", "--set", "name=mine")
    checked = json.loads(out)
    assert (code, checked["training"]["steps"], checked["seed"], checked["name"]) == (0, 7, 5, "mine")
    assert f"{SPEC} + {over} is valid" in err
    code, _, err = call(capsys, "validate", SPEC, "--set", "seed")
    assert (code, "write KEY=VALUE" in err) == (Exit.USAGE, True)
    code, _, err = call(capsys, "run", SPEC, "--set", "training.stepz=5")
    assert (code, "did you mean 'steps'" in err) == (Exit.USAGE, True)


def test_init_writes_an_example_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my.toml"
    code, out, _ = call(capsys, "init", str(path))
    assert (code, out.strip()) == (0, str(path))
    assert load_spec(path).name == "digits-pair"
    path.write_text("mine")
    code, _, err = call(capsys, "init", str(path))
    assert code == Exit.USAGE
    assert "--force" in err
    assert path.read_text() == "mine"
    assert call(capsys, "init", str(path), "--force")[0] == 0
    assert call(capsys, "init", str(tmp_path / "no" / "where.toml"))[0] == Exit.USAGE


def test_replay_names_the_run_and_the_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job").mkdir()
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(local, "run_module", lambda *words: asked.append(words) or Exit.REPLAY_DIFFERS)
    for words in (["job", "replica-1", "--storage", str(tmp_path)], [str(tmp_path / "job"), "1"]):
        assert call(capsys, "replay", *words)[0] == Exit.REPLAY_DIFFERS
    assert asked == [("codistill.replay", str(tmp_path / "job"), "1")] * 2
    code, _, err = call(capsys, "replay", str(tmp_path / "job"), "solo-0")
    assert (code, "name replica-0" in err) == (Exit.USAGE, True)
    assert call(capsys, "replay", "nowhere", "0", "--storage", str(tmp_path))[0] == Exit.JOB_NOT_FOUND


def test_compare_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "compare", "a=nobody-aaaaaa")
    assert code == Exit.JOB_NOT_FOUND
    assert "--storage" in err
    RunDir(tmp_path, "early-aaaaaa").create(JobSpec())
    code, _, err = call(capsys, "compare", "a=early-aaaaaa", "--storage", str(tmp_path))
    assert code == Exit.JOB_NOT_FINISHED
    assert "has not ended" in err
    assert call(capsys, "compare", "a=../x")[0] == Exit.USAGE


@pytest.mark.parametrize("words", [["list"], ["show", "x"], ["submit", SPEC], ["wait", "x"], ["logs", "x"]], ids=str)
def test_no_service_is_3_and_says_how_to_start_one(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, *words)
    assert (code, out) == (Exit.UNAVAILABLE, "")
    assert "codistill serve" in err


def test_something_else_at_the_address_is_3(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:  # answers 501 in HTML
        threading.Thread(target=other.handle_request, daemon=True).start()
        code, _, err = call(capsys, "list", "--url", f"http://127.0.0.1:{other.server_port}")
    assert code == Exit.UNAVAILABLE
    assert "501" in err


@pytest.mark.parametrize("verb", ["serve", "demo", "run"])
def test_without_ray_it_names_the_extra(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "ray" else real(name, *a))
    words = ["run", SPEC, "--on", "auto"] if verb == "run" else [verb]
    code, _, err = call(capsys, *words)
    assert code == Exit.UNAVAILABLE
    assert "pip install 'codistill[cluster]'" in err


def test_serve_on_a_port_in_use_is_3(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, _, err = call(capsys, "serve", "--port", port)
        assert code == Exit.UNAVAILABLE
        assert f"port {port} of 127.0.0.1 is in use" in err
        assert "--port" in err


def test_serve_on_a_cluster_that_does_not_answer_is_3(capsys: pytest.CaptureFixture[str]) -> None:
    port = str(free_ports(1)[0])
    code, _, err = call(capsys, "serve", "--on", "127.0.0.1:9", "--port", port)
    assert code == Exit.UNAVAILABLE
    assert "no Ray cluster answers at 127.0.0.1:9" in err
    assert call(capsys, "serve", "--on", "nowhere", "--port", port)[0] == Exit.USAGE


def test_serve_on_missing_or_full_storage_is_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = call(capsys, "serve", "--storage", str(tmp_path / "nowhere"))
    assert code == Exit.UNAVAILABLE
    assert "does not exist; create it" in err
    monkeypatch.setattr(RunDir, "free_bytes", lambda _self: 1000)
    code, _, err = call(capsys, "serve")
    assert code == Exit.UNAVAILABLE
    assert "is full" in err


def test_serve_with_a_home_that_is_a_file_is_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CODISTILL_HOME", str(tmp_path / "file"))
    code, _, err = call(capsys, "serve")
    assert code == Exit.UNAVAILABLE
    assert "CODISTILL_HOME" in err


def test_serve_with_a_damaged_store_is_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "home" / "service").mkdir(parents=True)
    (tmp_path / "home" / "service" / "jobs.db").write_bytes(b"no database " * 1000)
    code, _, err = call(capsys, "serve")
    assert code == Exit.UNAVAILABLE
    assert "not a readable store" in err


def test_down_without_a_head_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "down")
    assert code == 0
    assert "nothing to end" in err


def test_an_unexpected_error_is_1_and_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: Client, **_: Any) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(Client, "list", fail)
    code, _, err = call(capsys, "list")
    assert code == Exit.OUR_BUG
    assert err.count("\n") == 1
    monkeypatch.setenv("CODISTILL_LOG_LEVEL", "debug")
    assert cli.run(["list"]) == Exit.OUR_BUG
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_self: Client, *_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "wait", interrupt)
    code, _, err = call(capsys, "watch", "x")
    assert code == Exit.INTERRUPTED
    assert "the job goes on" in err
    assert "interrupted" in err


def test_the_command_starts_fast_and_light() -> None:
    """Help needs neither torch nor Ray nor a database nor pyarrow, installed or not."""
    heavy = ["torch", "ray", "sqlalchemy", "alembic", "pyarrow", "numpy", "fastapi"]
    program = (
        f"import sys\nfor name in {heavy!r}: sys.modules[name] = None\n"
        "from jobs.cli import run\ncode = run(['--help'])\n"
        f"code = code or run(['validate', {SPEC!r}])\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- with a service


def test_submit_prints_only_the_id_on_stdout(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "submit", SPEC)
    assert code == 0
    job_id = out.strip()
    assert server.store.get(job_id) is not None
    assert f"codistill watch {job_id}" in err


def test_submit_of_what_never_fits_is_2(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "big.toml").write_text("[replicas]\ncount = 8\n")
    code, out, err = call(capsys, "submit", str(tmp_path / "big.toml"))
    assert (code, out) == (Exit.USAGE, "")
    assert "the job needs 8 CPUs" in err


def test_list_and_show(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    job_id = call(capsys, "submit", SPEC)[1].strip()
    code, out, _ = call(capsys, "list")
    assert code == 0
    assert job_id in out
    assert "QUEUED" in out
    assert json.loads(call(capsys, "list", "-o", "json")[1])["items"][0]["id"] == job_id
    server.move(job_id, State.ADMITTED, State.STARTING)
    write_json(RunDir(server.storage, job_id).heartbeat(1, "replica-0"), beat(0, now=time.time()))
    out = call(capsys, "show", job_id)[1]
    assert "5/10" in out
    assert "replica-1 v4 ?/1" in out
    assert json.loads(call(capsys, "show", job_id, "-o", "json")[1])["status"]["state"] == "STARTING"


@pytest.mark.parametrize("verb", ["show", "logs", "wait", "watch", "cancel"])
@pytest.mark.parametrize("job_id", ["nobody-aaaaaa", "../../x", "a b\n"])
def test_unknown_jobs_are_102(server: Server, verb: str, job_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, verb, job_id)
    assert (code, out) == (Exit.JOB_NOT_FOUND, "")
    assert "there is no" in err or "Not Found" in err


@pytest.mark.parametrize("verb", ["wait", "watch"])
@pytest.mark.parametrize(
    ("state", "expected"),
    [(State.SUCCEEDED, 0), (State.FAILED, 100), (State.CANCELLED, 103)],
)
def test_the_exit_code_says_how_a_job_ended(
    server: Server, verb: str, state: State, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = server.store.create(JobSpec()).id
    server.move(job_id, State.ADMITTED, State.STARTING, state)
    code, _, err = call(capsys, verb, job_id)
    assert code == expected
    assert f"{job_id} {state}" in err


def test_waiting_too_long_is_101(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    job_id = server.store.create(JobSpec()).id
    assert call(capsys, "wait", job_id, "--timeout", "0")[0] == Exit.JOB_NOT_FINISHED
    assert exit_of(State.RUNNING) is Exit.JOB_NOT_FINISHED


def test_cancel(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    job_id = server.store.create(JobSpec()).id
    code, _, err = call(capsys, "cancel", job_id, "--yes")
    assert code == 0
    assert "CANCELLED" in err


def test_logs_follow_a_job_to_its_end_without_steering_the_terminal(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = server.store.create(JobSpec()).id
    server.move(job_id, State.ADMITTED, State.STARTING)
    run = RunDir(server.storage, job_id)
    path = run.logs(1, "replica-0") / "0000.log"
    path.parent.mkdir(parents=True)
    path.write_text("one\n\x1b[31mtwo\n")

    def go_on() -> None:
        time.sleep(0.7)
        with path.open("a") as file:
            file.write("three\n")
        server.move(job_id, State.SUCCEEDED)

    thread = threading.Thread(target=go_on)
    thread.start()
    code, out, _ = call(capsys, "logs", job_id, "--follow")
    thread.join()
    assert (code, out) == (0, "one\n?[31mtwo\nthree\n")
    assert call(capsys, "logs", job_id, "--tail", "1")[1] == "three\n"
    assert call(capsys, "logs", job_id, "--replica", "replica-7")[0] == Exit.JOB_NOT_FOUND


def test_watch_prints_replicas_and_teacher_ages_as_lines(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = LineReporter.report

    def report_and_end(self: LineReporter, job: RemoteJob) -> None:
        report(self, job)
        if not job.ended:
            server.move(job_id, State.SUCCEEDED)

    monkeypatch.setattr(LineReporter, "report", report_and_end)
    job_id = server.store.create(JobSpec()).id
    server.move(job_id, State.ADMITTED, State.STARTING, State.RUNNING)
    write_json(RunDir(server.storage, job_id).heartbeat(1, "replica-0"), beat(0, now=time.time()))
    code, out, _ = call(capsys, "watch", job_id)
    assert code == 0
    assert f"{job_id}: RUNNING" in out
    assert "step 5/10" in out
    assert "replica-1 v4 (lag ?, offset 1)" in out
    assert out.strip().endswith(f"{job_id}: SUCCEEDED")


# ---------------------------------------------------------------- client


def test_the_client_is_typed_and_pages_rows(server: Server) -> None:
    with Client(server.url) as client:
        job = client.submit(JobSpec(name="typed"))
        assert isinstance(job, RemoteJob)
        assert job.state is State.QUEUED
        assert client.metrics(job.id) == []
        assert client.ledger(job.id, replica="replica-1") == []
        assert client.list(state=State.QUEUED)["items"][0]["id"] == job.id
        assert client.cancel(job.id).state is State.CANCELLED
        assert client.wait(job.id).ended
        with pytest.raises(ServiceRefused) as refused:
            client.submit({"training": {"stepz": 1}})
        assert (refused.value.status, refused.value.code) == (422, "bad_spec")
        assert refused.value.errors[0]["path"] == "training.stepz"
    with Client("http://127.0.0.1:9") as nobody, pytest.raises(ServiceUnreachable):
        nobody.show("x")


def test_lines_are_said_once_per_change() -> None:
    value = {"id": "a-aaaaaa", "status": {"state": "QUEUED", "reason": None, "replicas": []}}
    job, reporter = RemoteJob.from_json(value), LineReporter("solo ")
    assert reporter.lines(job, 0.0) == ["solo a-aaaaaa: QUEUED"]
    assert reporter.lines(job, 10.0) == []


# ---------------------------------------------------------------- the demo's words


@pytest.mark.parametrize("recipe", [demo.DemoRecipe.IMAGES, demo.DemoRecipe.DIGITS])
def test_the_demo_gives_both_arms_the_same_budget_and_seeds_that_differ(recipe: demo.DemoRecipe) -> None:
    specs = demo.demo_specs(recipe)
    assert {s.recipe.kind for found in specs.values() for s in found} == {recipe.value}
    assert {arm: len(found) for arm, found in specs.items()} == {"solo": 2, "codistilled": 2}
    assert [s.seed for s in specs["solo"]] == [s.seed for s in specs["codistilled"]]
    everything = [s for found in specs.values() for s in found]
    assert len({(s.training, s.recipe, s.data) for s in everything}) == 1
    assert {s.replicas.count for s in specs["solo"]} == {1}
    assert {s.replicas.count for s in specs["codistilled"]} == {2}


def test_the_demo_takes_images_where_they_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path))
    monkeypatch.setenv("PATH", "")  # no package client
    assert demo.settle_recipe(demo.DemoRecipe.DIGITS) is demo.DemoRecipe.DIGITS
    assert demo.settle_recipe(demo.DemoRecipe.AUTO) is demo.DemoRecipe.DIGITS
    assert "the demo stays with scikit-learn's digits: " in capsys.readouterr().err
    with pytest.raises(CommandError, match="dataset-fashion-mnist"):
        demo.settle_recipe(demo.DemoRecipe.IMAGES)
    write_images(tmp_path, "fashion-mnist")
    assert demo.settle_recipe(demo.DemoRecipe.AUTO) is demo.DemoRecipe.IMAGES


@pytest.mark.parametrize(
    ("environment", "terminal", "seen"),
    [
        ({"DISPLAY": ":0"}, True, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, True, True),
        ({}, True, False),
        ({"DISPLAY": ":0"}, False, False),
        ({"DISPLAY": ":0", "CI": "true"}, True, False),
        ({"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "10.0.0.1 5 10.0.0.2 22"}, True, False),
    ],
)
def test_a_browser_opens_only_where_somebody_sees_it(environment: dict[str, str], terminal: bool, seen: bool) -> None:
    assert demo.is_at_a_display(environment, terminal=terminal) is seen


def test_a_demo_keeps_to_its_own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODISTILL_DATABASE", "postgresql://ann@db/production")
    place = demo_service.new_place(tmp_path / "demo")
    environment = demo_service.environment_of(place)
    assert environment["CODISTILL_HOME"] == str(place)
    assert "CODISTILL_DATABASE" not in environment
    assert demo.again(Path("/a b"), {}) == "CODISTILL_HOME='/a b' codistill serve"
    assert demo.again(Path("/a"), os.environ) == "CODISTILL_DATABASE= CODISTILL_HOME=/a codistill serve"


@pytest.mark.parametrize(("kept", "left"), [(("jobs.db",), ["runs", "service"]), ((), ["runs"])])
def test_a_demo_leaves_runs_and_the_store_of_one_that_went_well(
    tmp_path: Path, kept: tuple[str, ...], left: list[str]
) -> None:
    for name in ("service/jobs.db", "service/token", "service/ray/log", "runs/a-aaaaaa/spec.json", "serve.log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    demo_service.clear(tmp_path, kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    assert [path.name for path in (tmp_path / "service").glob("*")] == list(kept)


def test_a_demo_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    place = demo_service.new_place(tmp_path / "demo")
    demo_service.clear(place, ())
    assert list((tmp_path / "demo").iterdir()) == []


def test_a_run_whose_data_are_not_here_is_refused_at_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path))
    with pytest.raises(CommandError, match="codistill data import gcide"):
        local.run([EXAMPLES / "text-pair.toml"], storage=tmp_path, name="job")
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize(
    ("accuracy", "log_loss", "churn", "says"),
    [
        (0.9, 0.5, 0.1, "exchange did not help here: error +0%, log loss +0%, churn +0%; to serve"),
        (0.9, 0.495, 0.099, "exchange did not help here"),  # within the margin
        (0.8, 0.6, 0.2, "exchange did not help here: error +100%"),
        (0.95, 0.4, 0.05, "exchange helped here: error -50%, log loss -20%, churn -50%; to serve"),
        (0.9, 0.4, 0.2, "exchange helped only in part: error +0%, log loss -20%, churn +100%; to serve"),
    ],
)
def test_the_demo_says_so_when_exchange_did_not_help(accuracy: float, log_loss: float, churn: float, says: str) -> None:
    from codistill.compare import Comparison, Row

    solo = Row("solo", 2, 0.5, 0.9, 0.5, 0.1, 0.1, 1.0, 0)
    pair = Row("codistilled", 2, 0.4, accuracy, log_loss, churn, 0.1, 1.0, 9)
    assert demo.verdict(Comparison((solo, pair))).startswith(says)


def test_the_environment_is_read_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.cli.output import home, service_url

    assert home() == tmp_path / "home"
    monkeypatch.delenv("CODISTILL_HOME")
    monkeypatch.delenv("CODISTILL_URL")
    assert home() == Path(os.path.expanduser("~/.codistill"))
    assert service_url() == "http://127.0.0.1:8700"


def test_validate_tells_facts(capfd: pytest.CaptureFixture[str]) -> None:
    assert local.validate([EXAMPLES / "digits-pair.toml"], facts=True) == 0
    facts = json.loads(capfd.readouterr().out)
    assert (facts["parameters"], facts["teachers_per_replica"]) == (6186, 1)
