"""`codistill token`, and a command line that uses one."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from jobs.callers import Scope, presented
from jobs.proxy import ORDERS, middlewares
from jobs.store import Store

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

    (one,) = middlewares()
    layer = one.cls(app)
    kept = [(b"accept", b"*/*"), (b"x-request-id", b"mine")]
    asyncio.run(layer({"type": "http", "headers": [*kept, *((order, b"-1") for order in ORDERS)]}, None, None))  # type: ignore[arg-type]
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
