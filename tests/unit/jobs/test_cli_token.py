"""`codistill token`, and a command line that uses one."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from jobs.callers import LOCAL, Scope, presented
from jobs.proxy import ORDERS, middlewares
from jobs.store import Store
from jobs.token_file import add_token, read_tokens

Call = Callable[..., tuple[int, str, str]]


def test_a_token_is_printed_once_and_listed_without_its_secret(call_at_home: Call, tmp_path: Path) -> None:
    code, out, err = call_at_home("token", "create", "ann", "--days", "30")
    sent = presented(out.strip())
    assert (code, sent is not None) == (0, True)
    assert out.strip() not in err
    call_at_home("token", "create", "root", "--scope", "admin")
    code, listed, _ = call_at_home("token", "list", "-o", "json")
    facts = json.loads(listed)
    assert [(f["owner"], f["scope"], f["state"]) for f in facts] == [
        ("ann", "write", "active"),
        ("root", "admin", "active"),
    ]
    assert facts[1]["expires_at"] is None
    assert facts[0]["expires_at"] > facts[0]["created_at"]
    assert out.strip()[-43:] not in listed
    assert yaml.safe_load(call_at_home("token", "list", "-o", "yaml")[1]) == facts
    store = Store.open(f"sqlite:///{tmp_path / 'home' / 'service' / 'jobs.db'}")
    assert sent is not None
    found = store.accounts.find(sent)
    assert found is not None
    assert (found.owner, found.scope) == ("ann", Scope.WRITE)
    assert call_at_home("token", "revoke", sent.id)[0] == 0
    assert store.accounts.find(sent) is None
    assert call_at_home("token", "revoke", sent.id)[0] == 2
    assert [row.action for row in store.audit()] == ["token.create", "token.create", "token.revoke"]
    store.close()
    assert re.search(rf"{sent.id} +ann +write +revoked", call_at_home("token", "list")[1])
    assert stat.S_IMODE((tmp_path / "home" / "service").stat().st_mode) == 0o700


@pytest.mark.parametrize("owner", ["", "Ann", "a b", "a" * 64, "../x"])
def test_an_owner_has_the_form_of_an_id(call_at_home: Call, owner: str) -> None:
    code, out, err = call_at_home("token", "create", owner)
    assert (code, out) == (2, "")
    assert "lower-case letters" in err


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_beyond_loopback_it_refuses_to_start_without_tokens(call_at_home: Call, host: str) -> None:
    code, _, err = call_at_home("serve", "--host", host)
    assert code == 2
    assert "codistill token create OWNER" in err
    call_at_home("token", "create", "ann", "--days", "0.001")
    (token,) = json.loads(call_at_home("token", "list", "-o", "json")[1])
    call_at_home("token", "revoke", token["id"])
    assert call_at_home("serve", "--host", host)[0] == 2, "one that has ended opens nothing"
    assert call_at_home("serve", "--tokens")[0] == 2, "nor does loopback that asks for them"


def test_headers_that_would_steer_serve_do_not_reach_it() -> None:
    import asyncio
    from typing import Any

    passed: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope)

    layer: Any = app
    for middleware in middlewares():  # as Serve does
        layer = middleware.cls(layer)
    kept = [(b"accept", b"*/*"), (b"x-request-id", b"mine")]
    headers = [*kept, *((order, b"-1") for order in ORDERS)]
    scope = {"type": "http", "method": "GET", "raw_path": b"/", "query_string": b"", "headers": headers}
    asyncio.run(layer(scope, None, None))
    assert passed[0]["headers"] == kept
    assert {b"x-request-timeout-seconds", b"x-request-disconnect-disabled"} <= ORDERS


def test_serve_knows_the_headers_that_are_taken_away() -> None:
    constants = pytest.importorskip("ray.serve._private.constants")
    names = {
        getattr(constants, name).lower().encode()
        for name in dir(constants)
        if name.startswith("SERVE_") and name.endswith("_HEADER") and isinstance(getattr(constants, name), str)
    }
    assert {b"x-request-timeout-seconds", b"x-request-disconnect-disabled"} <= names
    assert names - ORDERS - {b"x-request-id"} == set(), "a header of Serve that nobody has thought of"


def test_a_token_in_a_file_opens_a_service_whose_store_never_saw_it_made(call_at_home: Call, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    _, out, _ = call_at_home("token", "create", "ops", "--scope", "admin", "--days", "90", "--to", str(path))
    call_at_home("token", "create", "ann", "--to", str(path))
    sent = presented(out.strip())
    assert sent is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert out.strip()[-43:] not in path.read_text()
    assert json.loads(call_at_home("token", "list", "-o", "json")[1] or "[]") == [], "no store has it yet"
    first, second = read_tokens(path)
    assert (first.id, first.owner, first.scope, first.digest) == (sent.id, "ops", Scope.ADMIN, sent.digest)
    assert first.expires_at == pytest.approx(first.created_at + 90 * 86_400)
    assert (second.owner, second.scope, second.expires_at) == ("ann", Scope.WRITE, None)


def test_a_service_takes_in_its_file_once_and_what_was_revoked_stays_so(store_url: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    (made, text), _ = add_token(path, "ops", Scope.ADMIN, lifetime_s=60), add_token(path, "a", Scope.READ, lifetime_s=1)
    sent, now = presented(text), [made.created_at + 30]
    assert sent is not None
    store = Store.open(store_url, clock=lambda: now[0])
    given = read_tokens(path)
    assert [one.owner for one in store.accounts.adopt(given, by=LOCAL)] == ["ops", "a"]
    found = store.accounts.find(sent)
    assert (found, found and found.expires_at) == (given[0], pytest.approx(made.created_at + 60))
    assert store.accounts.adopt(given, by=LOCAL) == []
    now[0] += 31
    assert store.accounts.find(sent) is None, "it ends when the file says so"
    now[0] -= 31
    store.accounts.revoke(made.id, by=LOCAL)
    assert store.accounts.adopt(given, by=LOCAL) == []
    assert store.accounts.find(sent) is None
    assert [(row.action, row.target) for row in store.audit()] == [
        *(("token.adopt", one.id) for one in given),
        ("token.revoke", made.id),
    ]
    store.close()


GOOD = {
    "id": "a" * 12,
    "owner": "ops",
    "scope": "admin",
    "digest": "0" * 64,
    "created_at": "2030-01-01T00:00:00Z",
    "expires_at": None,
}


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([{**GOOD, "scope": "root"}], "line 1: scope"),
        ([GOOD, {**GOOD, "id": "A" * 12}], "line 2: id"),
        ([{**GOOD, "owner": "../x"}], "line 1: owner"),
        ([{**GOOD, "digest": "codistill_secret"}], "line 1: digest"),
        ([{**GOOD, "expires_at": "2030-01-01T00:00:00"}], "line 1: expires_at"),
        ([{**GOOD, "token": "codistill_secret"}], "line 1: token"),
        ([{key: GOOD[key] for key in GOOD if key != "expires_at"}], "line 1: expires_at"),
        ([GOOD, GOOD], "twice"),
        (["codistill_secret"], "line 1"),
    ],
)
def test_a_file_that_is_not_of_tokens_is_refused_and_not_shown(
    call_at_home: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[object], why: str
) -> None:
    path = tmp_path / "tokens"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    monkeypatch.setenv("CODISTILL_TOKENS_FILE", str(path))
    code, _, err = call_at_home("serve", "--host", "0.0.0.0")
    assert code == 2
    assert why in err
    assert "codistill_secret" not in err


def test_a_file_of_tokens_that_is_missing_is_said(call_at_home: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODISTILL_TOKENS_FILE", "/nowhere/tokens")
    code, _, err = call_at_home("serve", "--host", "0.0.0.0")
    assert (code, "cannot read /nowhere/tokens: No such file" in err) == (2, True)


def test_the_file_is_read_before_the_door_is_looked_at(
    call_at_home: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokens"
    call_at_home("token", "create", "ops", "--to", str(path))
    monkeypatch.setenv("CODISTILL_TOKENS_FILE", str(path))
    code, _, err = call_at_home("serve", "--host", "0.0.0.0", "--on", "127.0.0.1:9")
    assert (code, "no Ray cluster answers" in err) == (3, True)
    (kept,) = json.loads(call_at_home("token", "list", "-o", "json")[1])
    assert (kept["owner"], kept["state"]) == ("ops", "active")
