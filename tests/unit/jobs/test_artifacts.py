"""What a job has left can be taken away, and nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codistill.run_dir import RunDir, write_json
from jobs import cli
from jobs.artifacts import artifacts_of
from jobs.cli.exits import Exit
from jobs.client import Client, DownloadDiffers
from jobs.status import State
from tests.unit.jobs.test_api import Service, problem
from tests.unit.jobs.test_cli import Server

WEIGHTS = bytes(range(256)) * 40
LEFT = {
    "attempt-1/environment.json": "attempts/1/environment.json",
    "attempt-1/ledger/replica-1.parquet": "attempts/1/replicas/replica-1/ledger/all.parquet",
    "attempt-1/metrics/replica-0.parquet": "attempts/1/replicas/replica-0/metrics/all.parquet",
    "attempt-1/predictions/replica-0/test.parquet": "attempts/1/replicas/replica-0/predictions/test.parquet",
    "attempt-1/result.json": "attempts/1/result.json",
    "export/replica-0/README.md": "export/replica-0/README.md",
    "export/replica-0/manifest.json": "export/replica-0/manifest.json",
    "export/replica-0/model.safetensors": "export/replica-0/model.safetensors",
}
KEPT = [
    "spec.json",
    "checkpoints/replica-0/0001-000000000005/learner.safetensors",
    "exchange/replica-0/0001-0000-000000000005.safetensors",
    "attempts/1/replicas/replica-0/logs/0.log",
    "attempts/1/replicas/replica-0/metrics/part-0000-000000.arrow",
    "export/.replica-0.tmp/model.safetensors",
    "export/replica-9/model.safetensors",
]


def leave(run: RunDir) -> None:
    for place in [*LEFT.values(), *KEPT]:
        path = run.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(json.dumps({"of": place}).encode() if path.suffix == ".json" else WEIGHTS + place.encode())
    digest = hashlib.sha256((run.export("replica-0") / "model.safetensors").read_bytes()).hexdigest()
    write_json(run.export("replica-0") / "manifest.json", {"sha256": {"model.safetensors": digest}})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    service = Service(tmp_path_factory.mktemp("artifacts"))
    with service.http:
        job_id = service.submit()
        run = service.run(job_id)
        leave(run)
        other = service.storage / "other" / "export" / "replica-0"
        other.mkdir(parents=True)
        (other / "model.safetensors").write_text("secret")
        (run.export("replica-0") / "linked.bin").symlink_to(other / "model.safetensors")
        (run.export("replica-0") / "spec.bin").symlink_to(run.root / "spec.json")
        (run.export("replica-1")).symlink_to(other, target_is_directory=True)
        (run.export("replica-0") / "directory").mkdir()
        yield service, job_id
    service.store.close()


def test_the_listing_is_what_it_should_be(served: tuple[Service, str]) -> None:
    service, job_id = served
    items = service.get(f"/{job_id}/artifacts")["items"]
    assert [item["name"] for item in items] == sorted(LEFT)
    by_name = {item["name"]: item for item in items}
    model = by_name["export/replica-0/model.safetensors"]
    content = (RunDir(service.storage, job_id).root / LEFT[model["name"]]).read_bytes()
    assert model["bytes"] == len(content)
    assert model["sha256"] == hashlib.sha256(content).hexdigest()
    assert model["media_type"] == "application/octet-stream"
    assert by_name["attempt-1/result.json"]["sha256"] is None
    assert by_name["attempt-1/metrics/replica-0.parquet"]["media_type"] == "application/vnd.apache.parquet"


def test_a_storage_behind_a_link_has_the_same_and_a_run_that_is_one_has_nothing(
    served: tuple[Service, str], tmp_path: Path
) -> None:
    service, job_id = served
    (tmp_path / "data").symlink_to(service.storage, target_is_directory=True)
    replicas = ["replica-0", "replica-1"]
    assert list(artifacts_of(RunDir(tmp_path / "data", job_id), replicas)) == sorted(LEFT)
    (service.storage / "alias").symlink_to(service.storage / job_id, target_is_directory=True)
    assert artifacts_of(RunDir(service.storage, "alias"), replicas) == {}


def test_files_come_whole_in_ranges_and_not_again(served: tuple[Service, str]) -> None:
    service, job_id = served
    for name, place in LEFT.items():
        url = f"/api/v1/jobs/{job_id}/artifacts/{name}"
        content = (RunDir(service.storage, job_id).root / place).read_bytes()
        whole = service.http.get(url)
        assert (whole.status_code, whole.content) == (200, content)
        assert int(whole.headers["content-length"]) == len(content)
        assert whole.headers["x-content-type-options"] == "nosniff"
        assert whole.headers["content-disposition"].startswith("attachment")
        tag = whole.headers["etag"]
        part = service.http.get(url, headers={"Range": "bytes=10-19", "If-Range": tag})
        assert (part.status_code, part.content) == (206, content[10:20])
        assert part.headers["content-range"] == f"bytes 10-19/{len(content)}"
        assert service.http.get(url, headers={"Range": "bytes=10-19", "If-Range": '"other"'}).content == content
        assert service.http.get(url, headers={"Range": f"bytes={len(content)}-"}).status_code == 416
        again = service.http.get(url, headers={"If-None-Match": f'"x", {tag}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)


def test_a_changed_file_has_another_tag(served: tuple[Service, str]) -> None:
    service, job_id = served
    url = f"/api/v1/jobs/{job_id}/artifacts/attempt-1/result.json"
    path = RunDir(service.storage, job_id).result(1)
    before, content = service.http.get(url).headers["etag"], path.read_bytes()
    write_json(path, {"other": 1})
    assert service.http.get(url, headers={"If-None-Match": before}).status_code == 200
    path.write_bytes(content)


HOSTILE = [
    "../other/export/replica-0/model.safetensors",
    "export/../../other/export/replica-0/model.safetensors",
    "export/replica-0/../../spec.json",
    "export/replica-0/linked.bin",
    "export/replica-0/spec.bin",
    "export/replica-1/model.safetensors",
    "export/replica-9/model.safetensors",
    "export/replica-0/./model.safetensors",
    "export//replica-0/model.safetensors",
    "export/replica-0/model.safetensors/",
    "/etc/passwd",
    "//etc/passwd",
    "export/replica-0/model.safetensors\x00",
    "\x00",
    "export\\replica-0\\model.safetensors",
    "..%2f..%2fetc%2fpasswd",
    "export/replica-0/directory",
    "export",
    *KEPT,
]


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_nothing_else_is_given(served: tuple[Service, str], name: str) -> None:
    service, job_id = served
    for sent in (name, quote(name), quote(name, safe="")):
        status, body = ask_as_it_is(service, f"/api/v1/jobs/{job_id}/artifacts/{sent}")
        assert status == 404, sent
        assert b"no_such_artifact" in body


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
        st.lists(
            st.sampled_from(["..", ".", "", "export", "replica-0", "replica-1", "\x00", "spec.json", "%2e%2e"])
        ).map("/".join),
    )
)
def test_no_name_becomes_a_path(served: tuple[Service, str], name: str) -> None:
    service, job_id = served
    status, body = ask_as_it_is(service, f"/api/v1/jobs/{job_id}/artifacts/{name}")
    assert (status == 200) == (name in LEFT)
    assert b"secret" not in body


def ask_as_it_is(service: Service, path: str) -> tuple[int, bytes]:
    """Status and body for a path that no client has tidied up."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": path, "raw_path": quote(path, errors="replace").encode(), "root_path": "", "query_string": b"",
        "headers": [(b"host", b"127.0.0.1")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    asyncio.run(service.http.app(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def test_a_job_that_has_not_begun_has_left_nothing(tmp_path: Path) -> None:
    assert artifacts_of(RunDir(tmp_path, "job"), ["replica-0"]) == {}


def test_who_has_no_such_job(served: tuple[Service, str]) -> None:
    service, _ = served
    problem(service.http.get("/api/v1/jobs/job-aaaaaa/artifacts"), 404, "no_such_job")
    problem(service.http.get("/api/v1/jobs/job-aaaaaa/artifacts/export/x"), 404, "no_such_job")


def test_whole_files_are_written_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(tmp_path)
    try:
        with Client(server.url) as client:
            job_id = client.submit({"training": {"steps": 10}}).id
            server.move(job_id, State.ADMITTED, State.STARTING)
            run = RunDir(server.storage, job_id)
            leave(run)
            for artifact in client.artifacts(job_id):
                client.download(job_id, artifact, tmp_path / "got" / artifact["name"])
            got = {path.relative_to(tmp_path / "got").as_posix() for path in (tmp_path / "got").rglob("*.*")}
            assert got == set(LEFT)
            model: dict[str, Any] = next(dict(a) for a in client.artifacts(job_id) if a["sha256"])
            assert (tmp_path / "got" / model["name"]).read_bytes() == (run.root / LEFT[model["name"]]).read_bytes()
            with pytest.raises(DownloadDiffers, match="try again"):
                client.download(job_id, {**model, "sha256": "0" * 64}, tmp_path / "bad" / "model")
            assert os.listdir(tmp_path / "bad") == []
            others = [{**model, "sha256": "0" * 64}]
            monkeypatch.setattr(Client, "artifacts", lambda _self, _job_id: others)
            code = cli.run(["export", job_id, str(tmp_path / "bad"), "--url", server.url])
            assert (code, "try again" in capsys.readouterr().err) == (Exit.UNAVAILABLE, True)
    finally:
        server.close()
