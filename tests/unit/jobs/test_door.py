"""What is checked of a request before any route sees it; over the real routes, with two tenants."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from codistill.capacity import Node
from jobs.callers import LOCAL, Scope, mint, presented
from jobs.door import Door, DoorRules, bearer, hostname, is_loopback
from jobs.rate import Buckets, Rate
from jobs.routes import build_api
from jobs.routes.backend import Backend
from jobs.status import State
from jobs.store import Store
from jobs.store_terms import Quota
from tests.stores import new_store, sqlite_store
from tests.unit.jobs.fakes import Clock

PAIR = {"name": "pair", "training": {"steps": 10}}
NO_LIMIT = Rate(per_s=1e9, burst=1e9)


class Guarded:
    """A service with tokens for ann and bob."""

    def __init__(self, root: Path, store_url: str | None = None, **rules: Any) -> None:
        self.clock = Clock(1000.0)
        self.store = Store.open(store_url or new_store(root), self.clock)
        (root / "runs").mkdir()
        strict = {"needs_token": True, "reads": NO_LIMIT, "writes": NO_LIMIT, "guesses": NO_LIMIT, **rules}
        backend = Backend(self.store, root / "runs", lambda: [Node(2.0, 0.0)], DoorRules(**strict), Quota(6, 4))
        self.app = build_api(backend)
        self.http = TestClient(self.app, "http://127.0.0.1", raise_server_exceptions=False)
        self.tokens = {owner: self.token(owner, Scope.WRITE) for owner in ("ann", "bob")}

    def token(self, owner: str, scope: Scope, lifetime_s: float | None = None) -> str:
        return self.store.accounts.create(owner, scope, lifetime_s=lifetime_s, by=LOCAL)[1]

    def ask(self, method: str, path: str, token: str | None = None, **more: Any) -> Any:
        headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **more.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **more)

    def submit(self, owner: str, **change: Any) -> str:
        answer = self.ask("POST", "/api/v1/jobs", self.tokens[owner], json={**PAIR, **change})
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    made = Guarded(tmp_path)
    with made.http:
        yield made
    made.store.close()


@pytest.fixture
def on_both(tmp_path: Path, store_url: str) -> Iterator[Guarded]:
    """On SQLite and on PostgreSQL."""
    made = Guarded(tmp_path, store_url)
    with made.http:
        yield made
    made.store.close()


# ---------------------------------------------------------------- tokens


def routes(app: Any) -> list[tuple[str, str]]:
    """Method and path of everything in the OpenAPI document."""
    return [(method.upper(), path) for path, item in app.openapi()["paths"].items() for method in item]


def test_every_route_needs_a_token_but_health(guarded: Guarded) -> None:
    job = guarded.submit("ann")
    ended = guarded.token("ann", Scope.ADMIN, lifetime_s=1.0)
    guarded.clock.now += 2.0
    right = guarded.tokens["ann"]
    wrong = [None, "nonsense", mint()[1], right[:-1] + ("a" if right[-1] != "a" else "b"), ended]
    walked = routes(guarded.app)
    assert len(walked) >= 14
    for method, path in walked:
        for token in wrong:
            answer = guarded.ask(method, path.replace("{job_id}", job), token)
            if path == "/healthz":
                assert answer.status_code == 200
                continue
            assert answer.status_code == 401, (method, path, token)
            assert answer.json()["code"] == "no_valid_token"
            assert answer.headers["www-authenticate"].startswith("Bearer")
    assert guarded.ask("GET", "/openapi.json").status_code == 401, "not even what there is"


def test_no_route_tells_one_tenant_of_the_other(guarded: Guarded) -> None:
    job = guarded.submit("ann")
    bob = guarded.tokens["bob"]
    with_id = [(method, path) for method, path in routes(guarded.app) if "{job_id}" in path]
    assert len(with_id) >= 7
    for method, path in with_id:
        body: dict[str, Any] = {"json": {"priority": 3}} if method == "PATCH" else {}
        answer = guarded.ask(method, path.replace("{job_id}", job), bob, **body)
        assert (answer.status_code, answer.json()["code"]) == (404, "no_such_job"), (method, path)
        unknown = guarded.ask(method, path.replace("{job_id}", "job-aaaaaa"), bob, **body)
        assert unknown.json()["detail"] == answer.json()["detail"]
    assert guarded.ask("GET", "/api/v1/jobs?owner=ann", bob).json()["items"] == []
    assert guarded.ask("GET", "/api/v1/queue", bob).json()["items"] == []
    assert [j["id"] for j in guarded.ask("GET", "/api/v1/jobs", guarded.tokens["ann"]).json()["items"]] == [job]
    found = guarded.store.get(job)
    assert found is not None
    assert (found.state, found.priority) == (State.QUEUED, 0)


def test_nobody_learns_from_a_job_of_another(guarded: Guarded) -> None:
    """Neither its model nor that there is one."""
    job = guarded.submit("ann")

    def taught_by(who: str, teacher: str, *others: str, path: str = "/api/v1/jobs") -> Any:
        of = [{"kind": "job", "job": name} for name in (*others, teacher)]
        teachers = of[0] if len(of) == 1 else {"kind": "ensemble", "of": of}
        method = {"kind": "knowledge_distillation", "teacher": teachers}
        token = guarded.tokens.get(who) or guarded.token(who, Scope.ADMIN)
        return guarded.ask("POST", path, token, json={**PAIR, "method": method, "replicas": {"count": 1}})

    theirs, none = (taught_by("bob", teacher) for teacher in (job, "pair-aaaaaa"))
    assert theirs.status_code == none.status_code == 422
    assert theirs.json()["errors"][0]["path"] == "method.teacher.job"
    assert theirs.json()["detail"] == none.json()["detail"]
    assert taught_by("bob", job, path="/api/v1/jobs:validate").status_code == 422
    own = guarded.submit("bob")
    assert taught_by("bob", own, own).status_code == 202
    assert taught_by("bob", job, own).json()["errors"][0]["path"] == "method.teacher.of.1.job"
    assert taught_by("ann", job).status_code == 202
    assert taught_by("root", job).status_code == 202
    assert taught_by("root", "put-there-by-hand").status_code == 202


def test_a_scope_allows_what_it_says(guarded: Guarded) -> None:
    job = guarded.submit("ann")
    reader, admin = guarded.token("ann", Scope.READ), guarded.token("root", Scope.ADMIN)
    assert guarded.ask("GET", f"/api/v1/jobs/{job}", reader).status_code == 200
    for method, path in (("POST", f"/api/v1/jobs/{job}/cancel"), ("DELETE", f"/api/v1/jobs/{job}")):
        answer = guarded.ask(method, path, reader)
        assert (answer.status_code, answer.json()["code"]) == (403, "scope")
    assert guarded.ask("POST", "/api/v1/jobs", reader, json=PAIR).status_code == 403
    assert guarded.ask("GET", f"/api/v1/jobs/{job}", admin).status_code == 200
    assert [j["owner"] for j in guarded.ask("GET", "/api/v1/jobs", admin).json()["items"]] == ["ann"]
    assert guarded.ask("POST", f"/api/v1/jobs/{job}/cancel", admin).json()["status"]["state"] == "CANCELLED"


def test_one_token_takes_the_place_of_another_without_a_pause(on_both: Guarded) -> None:
    old, new = on_both.tokens["ann"], on_both.token("ann", Scope.WRITE)
    assert [on_both.ask("GET", "/version", token).status_code for token in (old, new)] == [200, 200]
    first = presented(old)
    assert first is not None
    assert on_both.store.accounts.revoke(first.id, by=LOCAL)
    assert not on_both.store.accounts.revoke(first.id, by=LOCAL), "it has ended already"
    assert [on_both.ask("GET", "/version", token).status_code for token in (old, new)] == [401, 200]


def test_a_secret_is_kept_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    guarded = Guarded(tmp_path, sqlite_store(tmp_path))
    secrets = [token[-43:] for token in guarded.tokens.values()]
    guarded.ask("GET", "/version", guarded.tokens["ann"])
    guarded.store.close()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    written += capfd.readouterr().err.encode()
    sent = presented(guarded.tokens["ann"])
    assert sent is not None
    assert sent.digest.encode() in written, "the right file was looked at"
    for secret in secrets:
        assert len(secret) == 43
        assert secret.encode() not in written
    assert sent.digest not in repr(sent)


def test_tokens_have_one_form() -> None:
    token_id, text, digest = mint()
    assert re.fullmatch(r"codistill_[a-z2-7]{12}_[A-Za-z0-9_-]{43}", text)
    sent = presented(text)
    assert sent is not None
    assert (sent.id, sent.digest) == (token_id, digest)
    for bad in ("", text[:-1], text + "a", text.upper(), " " + text, text.replace("_", "-")):
        assert presented(bad) is None
    assert bearer({"authorization": f"bearer  {text}"}) == text
    assert bearer({"authorization": f"Basic {text}"}) is None


# ---------------------------------------------------------------- how often


def test_a_token_that_asks_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path, reads=Rate(0.05, 3.0), writes=Rate(0.01, 1.0))
    ann, bob = guarded.tokens["ann"], guarded.tokens["bob"]
    codes = [guarded.ask("GET", "/version", ann).status_code for _ in range(4)]
    assert codes == [200, 200, 200, 429]
    answer = guarded.ask("GET", "/version", ann)
    assert (answer.json()["code"], answer.headers["retry-after"]) == ("too_many_requests", "20")
    assert guarded.ask("GET", "/version", bob).status_code == 200
    assert guarded.ask("POST", "/api/v1/jobs", ann, json=PAIR).status_code == 202, "of reads and writes each"
    late = guarded.ask("POST", "/api/v1/jobs", ann, json=PAIR)
    assert (late.status_code, late.headers["retry-after"]) == (429, "100")


def test_guessing_is_slowed_down(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path, guesses=Rate(0.001, 5.0))
    codes = [guarded.ask("GET", "/version", mint()[1]).status_code for _ in range(6)]
    assert codes == [401] * 5 + [429]
    assert guarded.ask("GET", "/version", guarded.tokens["ann"]).status_code == 200


def test_a_bucket_by_hand() -> None:
    buckets, rate = Buckets(most=2), Rate(per_s=0.5, burst=2.0)
    assert [buckets.take("a", rate, 0.0) for _ in range(3)] == [0.0, 0.0, 2.0]
    assert buckets.take("a", rate, 1.0) == 1.0
    assert buckets.take("a", rate, 2.0) == 0.0
    assert buckets.take("a", rate, 2.0) == 2.0
    assert buckets.take("b", rate, 2.0) == buckets.take("c", rate, 2.0) == 0.0
    assert buckets.take("a", rate, 2.0) == 0.0, "forgotten for the sake of the others"
    assert [buckets.take("a", rate, 99.0) for _ in range(3)] == [0.0, 0.0, 2.0], "no more than a burst is saved up"


# ---------------------------------------------------------------- pages of other sites


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "evil.example:8700"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "LOCALHOST:8700"}, 200),
        ({"Host": "[::1]:8700"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1234"}, 403),
        ({"Origin": "http://127.0.0.1"}, 200),
    ],
)
def test_other_names_and_foreign_pages_are_refused(guarded: Guarded, headers: dict[str, str], status: int) -> None:
    answer = guarded.ask("GET", "/version", guarded.tokens["ann"], headers=headers)
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_form_can_send_is_refused(guarded: Guarded, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    body = json.dumps(PAIR).encode()
    answer = guarded.ask("POST", "/api/v1/jobs", guarded.tokens["ann"], content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "not_json")


def test_names_are_read_as_they_are_meant() -> None:
    assert [hostname(h) for h in ("A.b:80", "[::1]:80", "[::1]", "a")] == ["a.b", "::1", "::1", "a"]
    given = ("127.0.0.1", "127.9.9.9", "::1", "localhost", "0.0.0.0", "10.0.0.1", "example.org", "")
    assert [is_loopback(h) for h in given] == [True, True, True, True, False, False, False, False]


# ---------------------------------------------------------------- names of requests, keys, quotas, audit


def test_a_request_keeps_a_name_that_may_stand_in_a_log(guarded: Guarded) -> None:
    named = guarded.ask("GET", "/healthz", headers={"X-Request-Id": "mine-1"})
    assert named.headers["x-request-id"] == "mine-1"
    for bad in ("a b", "x" * 65, 'a"b'):
        made = guarded.ask("GET", "/nowhere", headers={"X-Request-Id": bad})
        assert re.fullmatch("[0-9a-f]{32}", made.headers["x-request-id"])
        assert made.json()["request_id"] == made.headers["x-request-id"]


def test_the_same_key_means_the_same_job(on_both: Guarded) -> None:
    ann, key = on_both.tokens["ann"], {"Idempotency-Key": "k-1"}
    first = on_both.ask("POST", "/api/v1/jobs", ann, json=PAIR, headers=key)
    again = on_both.ask("POST", "/api/v1/jobs", ann, json={**PAIR, "seed": 0}, headers=key)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"]), "a default said aloud is the same body"
    other = on_both.ask("POST", "/api/v1/jobs", ann, json={**PAIR, "seed": 1}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
    bobs = on_both.ask("POST", "/api/v1/jobs", on_both.tokens["bob"], json={**PAIR, "seed": 1}, headers=key)
    assert bobs.json()["id"] != first.json()["id"], "keys are an owner's own"
    bad = on_both.ask("POST", "/api/v1/jobs", ann, json=PAIR, headers={"Idempotency-Key": "a b"})
    assert bad.status_code == 422
    assert len(on_both.store.page(limit=9)) == 2


def test_of_many_who_send_the_same_key_at_once_all_get_one_job(on_both: Guarded) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(16) as pool:
        sent = [
            pool.submit(
                on_both.ask, "POST", "/api/v1/jobs", on_both.tokens["ann"], json=PAIR, headers={"Idempotency-Key": "k"}
            )
            for _ in range(50)
        ]
        assert {answer.result().status_code for answer in sent} == {202}
        assert len({answer.result().json()["id"] for answer in sent}) == 1
    assert len(on_both.store.page(limit=9)) == 1


def test_the_queue_is_full_at_its_limits(on_both: Guarded) -> None:
    for _ in range(4):
        on_both.submit("ann")
    answer = on_both.ask("POST", "/api/v1/jobs", on_both.tokens["ann"], json=PAIR)
    assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
    assert "4 jobs of ann wait" in answer.json()["detail"]
    assert int(answer.headers["retry-after"]) > 0
    on_both.submit("bob")
    last = on_both.submit("bob")
    answer = on_both.ask("POST", "/api/v1/jobs", on_both.tokens["bob"], json=PAIR)
    assert "6 jobs wait" in answer.json()["detail"]
    on_both.ask("POST", f"/api/v1/jobs/{last}/cancel", on_both.tokens["bob"])
    on_both.submit("bob")


def test_by_default_no_owner_can_shut_the_others_out() -> None:
    assert Quota() == Quota(1000, 100)
    assert Quota.alone() == Quota(1000, 1000), "on loopback, where everybody is the same one"


def test_every_change_has_one_row_that_says_who(on_both: Guarded) -> None:
    bob = on_both.tokens["bob"]
    job = on_both.submit("bob")
    path = f"/api/v1/jobs/{job}"
    on_both.ask("PATCH", path, bob, json={"priority": 7}, headers={"X-Request-Id": "p-1"})
    for _ in range(2):
        on_both.ask("POST", f"{path}/cancel", bob)
    assert on_both.ask("PATCH", path, bob, json={"priority": 7}).json()["code"] == "not_queued"
    on_both.ask("DELETE", path, bob)
    rows = on_both.store.audit(job)
    assert [row.action for row in rows] == ["submit", "priority", "cancel", "delete"]
    assert {row.owner for row in rows} == {"bob"}
    assert rows[1].request_id == "p-1"
    (made,) = [row for row in on_both.store.audit() if row.action == "token.create" and row.target == rows[0].token_id]
    assert made.owner == "local"


def test_delete_needs_an_end_and_takes_everything_with_it(on_both: Guarded, tmp_path: Path) -> None:
    ann = on_both.tokens["ann"]
    answer = on_both.ask("POST", "/api/v1/jobs", ann, json=PAIR, headers={"Idempotency-Key": "k"})
    job = answer.json()["id"]
    (tmp_path / "runs" / job / "logs").mkdir(parents=True)
    answer = on_both.ask("DELETE", f"/api/v1/jobs/{job}", ann)
    assert (answer.status_code, answer.json()["code"]) == (409, "not_ended")
    on_both.ask("POST", f"/api/v1/jobs/{job}/cancel", ann)
    assert on_both.ask("DELETE", f"/api/v1/jobs/{job}", ann).status_code == 204
    assert on_both.ask("GET", f"/api/v1/jobs/{job}", ann).status_code == 404
    assert not (tmp_path / "runs" / job).exists()
    again = on_both.ask("POST", "/api/v1/jobs", ann, json=PAIR, headers={"Idempotency-Key": "k"})
    assert again.json()["id"] != job


# ---------------------------------------------------------------- bodies, and requests that stay open


class Sender:
    """With the ASGI protocol itself, since the test client gathers a body first: it sends `parts` of a body, then
    nothing more. The last is the one that ends in a brace."""

    def __init__(self, method: str, path: str, token: str | None = None, parts: tuple[bytes, ...] = ()) -> None:
        self.asked, self.sent, self.begun = 0, list[Any](), asyncio.Event()
        headers = {"host": "localhost", "content-type": "application/json", "content-length": "3"}
        headers |= {"authorization": f"Bearer {token}"} if token else {}
        self._parts, self._scope = list(parts), {
            "type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(),
            "query_string": b"", "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
            "client": ("::1", 5), "server": ("localhost", 80), "scheme": "http", "root_path": "",
        }  # fmt: skip

    async def _receive(self) -> dict[str, Any]:
        self.asked += 1
        if not self._parts:
            await asyncio.Event().wait()
        part = self._parts.pop(0)
        if part == GONE:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": not part.endswith(b"}")}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        self.begun.set()

    async def ask(self, app: Any) -> None:
        await asyncio.wait_for(app(self._scope, self._receive, self._send), 10)

    @property
    def answer(self) -> tuple[int, str]:
        """Status, and the code of a problem."""
        body = b"".join(message.get("body", b"") for message in self.sent)
        return self.sent[0]["status"], json.loads(body).get("code", "")


GONE = b"gone"
"""In the place of a part: the sender's end."""


def test_a_body_is_counted_as_it_comes(guarded: Guarded) -> None:
    """Whatever its headers say."""
    long = Sender("POST", "/api/v1/jobs", guarded.tokens["ann"], (b" " * 65536,) * 9)
    asyncio.run(long.ask(guarded.app))
    assert long.answer == (413, "body_too_large")
    assert long.asked == 5


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/jobs:validate", "/version"])
def test_a_body_has_to_come_in_time(tmp_path: Path, path: str) -> None:
    guarded = Guarded(tmp_path, body_timeout_s=0.05)
    slow = Sender("GET" if path == "/version" else "POST", path, guarded.tokens["ann"], ())
    asyncio.run(slow.ask(guarded.app))
    assert slow.answer == (408, "body_too_slow")
    whole = Sender("POST", "/api/v1/jobs", guarded.tokens["ann"], (b"{", b"}"))
    asyncio.run(whole.ask(guarded.app))
    assert whole.sent[0]["status"] == 202
    guarded.store.close()


def test_a_token_has_so_many_requests_open_and_no_more(tmp_path: Path) -> None:
    """Streams of events and bodies that do not come, which last; the others are held up by none of them."""
    guarded = Guarded(tmp_path, open_at_once=2, body_timeout_s=60.0)
    ann, bob = guarded.tokens["ann"], guarded.tokens["bob"]

    async def answer(method: str, path: str, token: str | None, parts: tuple[bytes, ...] = (b"}",)) -> tuple[int, str]:
        sender = Sender(method, path, token, parts)
        await sender.ask(guarded.app)
        assert sender.asked < 2, "no more than what was there"
        assert sender.answer[0] != 429 or sender.asked == 0
        return sender.answer

    async def play() -> None:
        listens, sends = Sender("GET", "/api/v1/events", ann, (b"}",)), Sender("POST", "/api/v1/jobs:validate", ann)
        listening, sending = (asyncio.create_task(one.ask(guarded.app)) for one in (listens, sends))
        await asyncio.wait_for(listens.begun.wait(), 10)
        while not sends.asked:
            await asyncio.sleep(0.01)
        assert await answer("GET", "/version", ann) == (429, "too_many_requests")
        assert await answer("POST", "/api/v1/jobs", ann, ()) == (429, "too_many_requests")
        assert (await answer("GET", "/version", bob))[0] == 200
        assert (await answer("GET", "/healthz", None, ()))[0] == 200
        assert await answer("GET", "/readyz", ann, ()) == (503, "no_manager")
        listening.cancel()
        await asyncio.wait([listening])
        assert (await answer("GET", "/version", ann))[0] == 200
        sending.cancel()
        await asyncio.wait([sending])

    asyncio.run(play())
    guarded.store.close()


@pytest.mark.parametrize("end", ["answers", "fails", "hangs", b"too long" * 65536, GONE])
def test_a_request_counts_no_longer_than_it_lasts(end: str | bytes) -> None:
    """Whatever its end is; without tokens all are of one caller."""
    answered = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal answered
        if (await receive())["type"] == "http.disconnect" or end == "fails":
            raise RuntimeError("no luck")
        if end == "hangs":
            await asyncio.Event().wait()
        answered += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    door = Door(app, DoorRules(open_at_once=1, body_timeout_s=0.05), lambda _: None)

    async def play() -> None:
        nonlocal end
        first = Sender("POST", "/version", None, (b"{", end if isinstance(end, bytes) else b"}"))
        asking = asyncio.create_task(first.ask(door))
        if end == "hangs":
            await asyncio.wait([asking], timeout=0.05)
            second = Sender("GET", "/version", None, (b"}",))
            await second.ask(door)
            assert second.answer == (429, "too_many_requests")
            assert dict(second.sent[0]["headers"])[b"retry-after"] == b"5"
            asking.cancel()
        await asyncio.wait([asking])
        before, end = answered, "answers"
        again = Sender("POST", "/version", None, (b"{", b"}"))
        await again.ask(door)
        assert (again.answer[0], answered) == (200, before + 1)

    asyncio.run(play())
