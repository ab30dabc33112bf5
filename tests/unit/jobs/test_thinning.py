"""Long series made short, against a loop that says the same in plain words; and the routes that do it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as some
from starlette.testclient import TestClient

from codistill.capacity import Node
from codistill.records import LEDGER, METRICS, Recorder
from codistill.run_dir import RunDir
from jobs.routes import build_api
from jobs.routes.backend import Backend
from jobs.store import Store
from jobs.thinning import thin, thin_table
from tests.stores import new_store


def by_loop(values: list[float], max_points: int) -> list[int]:
    """Stretch by stretch: first least, first greatest, first that is no number, last."""
    if len(values) <= max_points:
        return list(range(len(values)))
    stretches, kept = max_points // 4, set[int]()
    for number in range(stretches):
        rows = list(range(len(values) * number // stretches, len(values) * (number + 1) // stretches))
        finite = [row for row in rows if math.isfinite(values[row])]
        if finite:
            kept |= {min(finite, key=lambda row: values[row]), max(finite, key=lambda row: values[row])}
        kept |= set([row for row in rows if not math.isfinite(values[row])][:1]) | {rows[-1]}
    return sorted(kept)


@given(
    some.lists(
        some.one_of(some.integers(-3, 3).map(float), some.sampled_from([math.nan, math.inf, -math.inf])), max_size=200
    ),
    some.integers(4, 50),
)
def test_thinning_is_what_the_loop_says(values: list[float], max_points: int) -> None:
    found = thin(np.array(values, np.float64), max_points).tolist()
    assert found == by_loop(values, max_points)
    assert len(found) <= max_points


def test_a_spike_and_a_divergence_stay() -> None:
    values = np.sin(np.arange(100_000) / 50)
    values[[777, 55_555]] = 1e6, math.nan
    kept = thin(values, 400)
    assert {777, 55_555, 99_999} <= set(kept.tolist())
    assert len(kept) <= 400


def test_each_series_is_thinned_by_itself_and_order_stays() -> None:
    steps = np.repeat(np.arange(500), 2)
    names = ["a", "b"] * 500
    values = np.where(np.arange(1000) % 2, 5.0, np.arange(1000) // 2)
    thinned = thin_table(pa.table({"step": steps, "name": names, "value": values}), ["name"], "value", 8)
    rows = list(zip(thinned["step"].to_pylist(), thinned["name"].to_pylist(), strict=True))
    assert [step for step, _ in rows] == sorted(step for step, _ in rows)
    assert [step for step, name in rows if name == "a"] == [0, 249, 250, 499]
    assert [step for step, name in rows if name == "b"] == [0, 249, 250, 499]


# ---------------------------------------------------------------- the routes


@pytest.fixture
def written(tmp_path: Path) -> Iterator[tuple[TestClient, str]]:
    """A job whose replica has 30,000 rows of metrics and 900 of the ledger."""
    store = Store.open(new_store(tmp_path))
    (tmp_path / "runs").mkdir()
    http = TestClient(build_api(Backend(store, tmp_path / "runs", lambda: [Node(2.0, 0.0)])), "http://127.0.0.1")
    with http:
        job = http.post("/api/v1/jobs", json={"name": "long"}).json()["id"]
        replica = RunDir(tmp_path / "runs", job).replica(1, "replica-0")
        replica.mkdir(parents=True)
        metrics = Recorder(replica / "metrics", METRICS, fence=1, incarnation=0, flush_interval_s=99)
        for step in range(15_000):
            metrics.add_values(step, {"loss": 1.0 / (1 + step), "speed": float(step % 7)})
        metrics.flush()
        ledger = Recorder(replica / "ledger", LEDGER, fence=1, incarnation=0, flush_interval_s=99)
        for step in range(100):
            ledger.add(step, bytes_received=0, verdict="nobody")
        for step in range(100, 900):
            verdict = "non_finite" if step % 100 == 0 else "accepted"
            ledger.add(step, teacher="replica-1", offset_steps=step % 50, bytes_received=8, verdict=verdict)
        ledger.flush()
        yield http, job
    store.close()


def ask(written: tuple[TestClient, str], what: str, **query: Any) -> dict[str, Any]:
    http, job = written
    answer = http.get(f"/api/v1/jobs/{job}/{what}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_metrics_are_thinned_when_asked_and_say_so(written: tuple[TestClient, str]) -> None:
    thinned = ask(written, "metrics", max_points=100)
    assert thinned["thinned"] == {"rows": 30_000, "kept": len(thinned["items"])}
    assert thinned["next_after_step"] is None, "thinned before it is cut into pages"
    per_name = {name: [r for r in thinned["items"] if r["name"] == name] for name in ("loss", "speed")}
    assert all(50 <= len(rows) <= 100 for rows in per_name.values())
    assert [rows[-1]["step"] for rows in per_name.values()] == [14_999, 14_999]
    assert per_name["loss"][0]["value"] == 1.0
    new = ask(written, "metrics", max_points=100, after_step=14_990, names="loss")
    assert (len(new["items"]), new["thinned"]) == (9, None), "few rows come whole"
    assert ask(written, "metrics", after_step=14_990)["thinned"] is None
    for bad in (3, 100_001):
        assert written[0].get(f"/api/v1/jobs/{written[1]}/metrics", params={"max_points": bad}).status_code == 422


def test_sums_of_the_ledger_are_of_all_rows(written: tuple[TestClient, str]) -> None:
    totals = [
        {"teacher": None, "verdict": "nobody", "rows": 100, "bytes_received": 0},
        {"teacher": "replica-1", "verdict": "accepted", "rows": 792, "bytes_received": 792 * 8},
        {"teacher": "replica-1", "verdict": "non_finite", "rows": 8, "bytes_received": 64},
    ]
    for query in ({}, {"max_points": 20}, {"after_step": 890}):
        found = ask(written, "ledger", **query)["totals"]
        assert sorted(found, key=lambda row: row["rows"], reverse=True) == sorted(
            totals, key=lambda row: row["rows"], reverse=True
        ), query
    thinned = ask(written, "ledger", max_points=20)
    assert thinned["thinned"]["rows"] == 900
    assert sum(row["verdict"] == "non_finite" for row in thinned["items"]) == 8, "a series of its own"
    assert sum(row["verdict"] == "accepted" for row in thinned["items"]) <= 20
