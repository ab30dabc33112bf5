"""What somebody sends with ill intent: texts that should run, names that should be paths, bodies that should burst."""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codistill.run_dir import RunDir
from codistill.spec import JobSpec
from codistill.spec_errors import MAX_SPEC_BYTES, SpecError, parse_spec
from codistill.spec_files import load_spec
from tests.unit.jobs.test_api import JSON, PAIR, Service, problem

CANARY = "canary-that-sings"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    with service.http:
        yield service
    service.store.close()


# ---------------------------------------------------------------- texts that should run, or be opened

HEARD: list[tuple[str, str]] | None = None
"""What Python did with the canary, while somebody listens. A hook of this kind stays for the life of the process."""


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    # The store's own statements hold what they store, as parameters, of which no event tells.
    if HEARD is not None and any(CANARY in str(argument) for argument in arguments):
        HEARD.append((event, str(arguments)))


@pytest.fixture
def heard() -> Iterator[list[tuple[str, str]]]:
    global HEARD
    if not getattr(sys, "_codistill_listens", False):
        sys.addaudithook(_listen)
        sys._codistill_listens = True  # type: ignore[attr-defined]
    HEARD = []
    yield HEARD
    HEARD = None


def test_the_listener_hears(heard: list[tuple[str, str]]) -> None:
    with pytest.raises(FileNotFoundError):
        Path(f"/{CANARY}").read_text()
    compile(f"'{CANARY}'", "x", "eval")
    assert [event for event, _ in heard] == ["open", "compile"]


SPECS: list[dict[str, Any]] = [
    {"labels": {CANARY: f"{{{{ {CANARY} }}}} $({CANARY}) ../{CANARY} http://{CANARY}/"}},
    {"recipe": {"kind": "images", "data": CANARY}},
    {"recipe": {"kind": "text", "data": CANARY}, "training": {"steps": 10, "batch_size": 4}},
    {"recipe": {"kind": "installed", "name": CANARY, "options": {CANARY: [f"!!python/object:{CANARY}", {"x": 1}]}}},
    {"method": {"kind": "knowledge_distillation", "teacher": {"kind": "job", "job": CANARY}}},
    {"method": {"kind": "knowledge_distillation", "teacher": {"kind": "model", "name": CANARY}}},
    {"name": f"../{CANARY}"},
    {CANARY: f"__import__('{CANARY}')"},
    {"method": {"kind": CANARY}},
]  # fmt: skip


def test_no_text_of_a_spec_is_run_imported_or_opened(service: Service, heard: list[tuple[str, str]]) -> None:
    taken = 0
    for spec in SPECS:
        for path in ("/api/v1/jobs:validate", "/api/v1/jobs"):
            answer = service.http.post(path, json={**PAIR, **spec})
            assert answer.status_code in (200, 202, 422), answer.text
        taken += answer.status_code == 202
        if answer.status_code == 202:
            service.get(f"/{answer.json()['id']}")
    service.get("", label=f"{CANARY}=x")
    assert taken >= 4
    assert heard == []


def test_the_name_alone_is_part_of_a_path_below_the_storage(service: Service, heard: list[tuple[str, str]]) -> None:
    job_id = service.submit(name=CANARY)
    service.run(job_id)
    service.get(f"/{job_id}")
    assert heard, "the run directory bears it"
    for _, arguments in heard:
        named = re.findall(r"[^'\"\s(),]*" + CANARY + r"[^'\"\s(),]*", arguments)
        assert all(Path(one).is_relative_to(service.storage / job_id) for one in named), arguments


def test_no_field_of_a_spec_is_an_address_or_a_path() -> None:
    """Of every table of the schema: so nobody can be sent anywhere."""
    schema = json.dumps(JobSpec.model_json_schema())
    keys: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            keys.update(value.get("properties", {}))
            for part in value.values():
                walk(part)
        elif isinstance(value, list):
            for part in value:
                walk(part)

    walk(json.loads(schema))
    assert {"labels", "steps", "job"} <= keys
    words = {word for key in keys for word in key.split("_")}
    assert (
        words & {"url", "uri", "path", "file", "dir", "directory", "host", "endpoint", "command", "module", "env"}
        == set()
    )
    assert '"format":' not in schema


# ---------------------------------------------------------------- names that should be paths

PIECES = [
    "..", ".", "/", "//", "\\", "%2e%2e", "%2f", "%00", "\0", "#", "?", "~", "$HOME", "\n", "\r", "\t", " ", "etc",
    "passwd", "a", "-", "é", "\u202e", "\uff0e\uff0e", "C:", "file:", "job-aaaaaa", "A", "0", "x" * 64,
    ";", "|", "\x1b[2J",
]  # fmt: skip


def test_none_of_ten_thousand_names_leads_out_of_the_storage(tmp_path: Path) -> None:
    draw, taken = random.Random(7), 0
    storage = tmp_path / "runs"
    for _ in range(10_000):
        name = "".join(draw.choices(PIECES, k=draw.randint(1, 4)))
        for make in (
            lambda name: RunDir(storage, name).root,
            lambda name: RunDir(storage, "job-aaaaaa").export(name),
            lambda name: RunDir(storage, "job-aaaaaa").heartbeat(1, name),
        ):
            try:
                path = make(name)
            except ValueError:
                continue
            taken += 1
            assert path.resolve().is_relative_to(storage), repr(name)
            assert path.resolve() != storage, repr(name)
            assert re.fullmatch("[a-z0-9][a-z0-9-]*", name), repr(name)
    assert taken > 100, "some of them are names"


# ---------------------------------------------------------------- bodies that should burst

DEEP = 100_000
BODIES = {
    "lists": "[" * DEEP,
    "objects": '{"a":' * (MAX_SPEC_BYTES // 5 - 1),
    "closed": "[" * DEEP + "]" * DEEP,
    "options": '{"recipe": {"kind": "installed", "name": "a", "options": {"a": ' + "[" * DEEP + "]" * DEEP + "}}}",
    "huge number": '{"training": {"steps": 1e999}}',
    "long number": '{"training": {"steps": ' + "9" * 200_000 + "}}",
    "not a number": '{"training": {"clip_norm": NaN}}',
    "infinity": '{"training": {"clip_norm": Infinity}}',
    "many keys": json.dumps({f"k{n}": 0 for n in range(15_000)}),
    "a long key": json.dumps({"a" * 250_000: 0}),
    "long keys": json.dumps({f"{n:05d}" * 400: 0 for n in range(120)}),
    "long text": json.dumps({"name": "a" * 250_000}),
    "too long": json.dumps({"name": "a" * MAX_SPEC_BYTES}),
}


def held_bytes() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) << 10


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/jobs:validate"])
def test_what_should_burst_is_refused_quickly_and_leaves_nothing_behind(service: Service, path: str) -> None:
    service.http.post(path, content="{", headers=JSON)
    before = held_bytes()
    for name, body in BODIES.items():
        began = time.process_time()
        answer = service.http.post(path, content=body, headers=JSON)
        assert answer.status_code in (413, 422), (name, answer.status_code)
        assert time.process_time() - began < 1.0, name
        assert len(answer.content) <= MAX_SPEC_BYTES, name
    assert held_bytes() - before < 20 << 20
    problem(service.http.post(path, content=BODIES["too long"], headers=JSON), 413, "body_too_large")


def test_aliases_of_yaml_are_refused_before_they_stand_for_anything(tmp_path: Path) -> None:
    laughs = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    laughs += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    for text in ("a: &a [1]\nb: *a", "a: &a [*a]", "\n".join(laughs)):
        (tmp_path / "spec.yaml").write_text(text)
        began = time.process_time()
        with pytest.raises(SpecError, match="alias"):
            load_spec(tmp_path / "spec.yaml")
        assert time.process_time() - began < 1.0


# ---------------------------------------------------------------- jobs that are too large


@pytest.mark.parametrize(
    ("path", "most", "more"),
    [
        ("replicas.count", 16, 17),
        ("replicas.ranks", 64, 65),
        ("replicas.cpus", 1024.0, 1024.5),
        ("training.steps", 10**8, 10**8 + 1),
        ("training.batch_size", 10**6, 10**6 + 1),
        ("limits.max_runtime_s", 30 * 86_400.0, 30 * 86_400.0 + 1),
        ("limits.max_attempts", 100, 101),
        ("limits.max_failures", 1000, 1001),
    ],
)
def test_sizes_have_limits(path: str, most: float, more: float) -> None:
    """Of the schema itself, before anybody asks whether there is room."""
    table, key = path.split(".")

    def problems(value: float) -> list[str]:
        try:
            parse_spec({table: {key: value}})
        except SpecError as error:
            return [problem.path for problem in error.problems]
        return []

    assert path not in problems(most)
    assert path in problems(more)


def test_a_job_that_says_nothing_ends_after_a_day() -> None:
    assert JobSpec().limits.max_runtime_s == 24 * 3600
