"""The pages as they are sent: the same for everybody, closed to other origins, and whole."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

import codistill
from codistill.capacity import Node
from codistill.lineage import FORK, RESUME
from codistill.run_dir import RunDir
from jobs.callers import LOCAL, Scope
from jobs.disagreement import disagreement_of
from jobs.door import DoorRules
from jobs.page.routes import HERE
from jobs.rate import Rate
from jobs.routes import build_api
from jobs.routes.backend import Backend
from jobs.store import Store
from tests.ended_runs import write_rows
from tests.stores import new_store

PAGES = ("/", "/jobs/pair-k3x7qa", "/compare", "/studies", "/studies/weights", "/queue", "/submit")
STATIC = HERE / "static"
OURS = sorted(path for path in STATIC.iterdir() if path.suffix in {".js", ".css"} and not path.name.startswith("uPlot"))
MOST_BYTES = 60_000


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    root = tmp_path_factory.mktemp("page")
    store = Store.open(new_store(root))
    backend = Backend(store, root, lambda: [Node(2.0, 0.0)], DoorRules(needs_token=True, guesses=Rate(1e9, 1e9)))
    with TestClient(build_api(backend), "http://127.0.0.1") as http:
        yield http
    store.close()


class Names(HTMLParser):
    """Addresses, ids and whatever would be run or styled in the page itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.pointed: list[str] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.addresses += [given[name] for name in ("src", "href") if name in given]
        self.ids += [given["id"]] if "id" in given else []
        self.pointed += [given[name] for name in ("for", "aria-labelledby", "aria-describedby") if name in given]
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)
        self.inline += [name for name in given if name == "style" or name.startswith("on")]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_open_and_loads_only_from_here(guarded: TestClient, path: str) -> None:
    answer = guarded.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["object-src"] == "'none'"
    assert "unsafe" not in str(policy)
    assert answer.headers["x-content-type-options"] == "nosniff"
    names = Names(answer.text)
    assert names.inline == [], "the policy would stop it"
    for address in names.addresses:
        assert re.match(r"/(?!/)|#", address), address
        if address.startswith("/"):
            assert guarded.get(address).status_code == 200, address
    assert len(set(names.ids)) == len(names.ids)
    assert set(names.pointed) <= set(names.ids)
    assert 'data-needs-token="yes"' in answer.text


def test_a_page_tells_nothing_of_jobs_or_versions(guarded: TestClient) -> None:
    assert guarded.get("/jobs/pair-k3x7qa").text == guarded.get("/jobs/nobody-aaaaaa").text
    assert all(codistill.__version__ not in guarded.get(path).text for path in PAGES)
    for path in ("/api/v1/jobs", "/jobs", "/static", "/compare/x", "/openapi.json"):
        assert guarded.get(path).status_code == 401, path
    for bad in ("/static/../routes.py", "/static/%2e%2e/routes.py", "/static/..%2froutes.py", "/static/nothing.js"):
        assert guarded.get(bad).status_code in {401, 404}, bad


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_our_files_name_no_other_origin_and_make_no_markup_of_text(guarded: TestClient, path: Path) -> None:
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|[\"'(]//", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    served = guarded.get(f"/static/{path.name}")
    assert served.headers["content-security-policy"].startswith("default-src 'self'")
    kind = {".js": "javascript", ".css": "text/css"}[path.suffix]
    assert kind in served.headers["content-type"], "with nosniff a browser takes nothing else"
    for imported in re.findall(r'from "\./([\w.]+)"', text):
        assert (STATIC / imported).is_file()


def test_the_form_says_what_may_change(guarded: TestClient) -> None:
    shell = guarded.get("/jobs/pair-k3x7qa").text
    for way, keys in (("resume", RESUME), ("fork", FORK)):
        told = re.search(rf'<details id="may-{way}">.*?</details>', shell, re.DOTALL)
        assert told is not None
        assert re.findall(r"<code>(.*?)</code>", told[0]) == list(keys)


def test_what_is_not_ours_is_what_its_authors_published() -> None:
    listed = tomllib.loads((STATIC / "VENDORED.toml").read_text())
    hashes = {name: wanted for package in listed.values() for name, wanted in package["sha256"].items()}
    assert {path.name for path in STATIC.iterdir()} - {path.name for path in OURS} == {
        *hashes, "VENDORED.toml", "icon.svg", "arrow.svg",
    }  # fmt: skip
    for name, wanted in hashes.items():
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == wanted, name
    for package in listed.values():
        assert package["licence"]
        assert package["version"] in package["source"]


@pytest.mark.parametrize("address", PAGES)
def test_a_page_stays_small(guarded: TestClient, address: str) -> None:
    """With all that it names, and what those files name in turn, as they are sent."""
    text = guarded.get(address).text
    wanted, sent = re.findall(r'"/static/([^"]+)"', text), {address: len(text)}
    while wanted:
        if (name := wanted.pop()) not in sent:
            answer = guarded.get(f"/static/{name}", headers={"Accept-Encoding": "gzip"})
            assert answer.text == (STATIC / name).read_text()
            sent[name] = answer.num_bytes_downloaded
            wanted += re.findall(r'from "\./([^"]+)"', answer.text) if name.endswith(".js") else []
    assert "dom.js" in sent
    assert sum(sent.values()) <= MOST_BYTES


def test_typing_into_the_form_does_not_use_up_what_may_be_written(tmp_path: Path) -> None:
    store = Store.open(new_store(tmp_path))
    rules = DoorRules(needs_token=True, writes=Rate(1e-9, 1.0))
    token = store.accounts.create("ann", Scope.WRITE, lifetime_s=None, by=LOCAL)[1]
    with TestClient(build_api(Backend(store, tmp_path, lambda: [Node(2.0, 0.0)], rules)), "http://127.0.0.1") as http:
        headers = {"Authorization": f"Bearer {token}"}
        for _ in range(5):
            assert http.post("/api/v1/jobs:validate", json={}, headers=headers).status_code == 200
            assert http.post("/api/v1/jobs/no-such/fork:validate", json={}, headers=headers).status_code == 404
        assert http.post("/api/v1/jobs", json={}, headers=headers).status_code == 202
        assert http.post("/api/v1/jobs", json={}, headers=headers).status_code == 429
    store.close()


def test_disagreement_counts_different_choices(tmp_path: Path) -> None:
    run, names = RunDir(tmp_path, "pair"), ["replica-0", "replica-1", "replica-2"]
    assert disagreement_of(run, 1, names) == {"replicas": [], "flips": [], "missing": names}
    rows = {"replica-0": [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]]}
    rows["replica-1"] = [[0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.6, 0.4]]
    for name, probabilities in rows.items():
        path = run.replica(1, name) / "predictions" / "test.parquet"
        path.parent.mkdir(parents=True)
        write_rows(path, probabilities, [0, 1, 0, 0])
    found = disagreement_of(run, 1, names)
    assert (found["replicas"], found["missing"]) == (["replica-0", "replica-1"], ["replica-2"])
    assert np.array_equal(found["flips"], [[0, 0.5], [0.5, 0]])
