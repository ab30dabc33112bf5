"""A co-distillation spec turned into its baselines: what changes, and that nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from codistill.baselines import Baseline, baseline_of
from codistill.spec import JobSpec
from codistill.spec_errors import SpecError, parse_spec
from jobs.cli import local

GIVEN: dict[str, Any] = {
    "name": "pair", "seed": 5, "data": {"kind": "disjoint"}, "controls": ["solo"],
    "training": {"steps": 70, "batch_size": 24, "accumulate": 2, "optimizer": {"kind": "adamw"}},
    "replicas": {"count": 3, "ranks": 2, "cpus": 0.5},
    "exchange": {
        "interval_steps": 20, "max_lag_steps": 60, "max_offset_steps": 70, "topology": {"kind": "ring"},
        "precision": "bf16", "transport": {"kind": "files"},
    },
}  # fmt: skip


def changed(before: Any, after: Any, at: str = "") -> dict[str, Any]:
    """What differs, by dotted path."""
    if not isinstance(before, dict) or not isinstance(after, dict) or before.get("kind") != after.get("kind"):
        return {} if before == after else {at: after}
    found: dict[str, Any] = {}
    for key in before:
        found |= changed(before[key], after[key], f"{at}.{key}".strip("."))
    return found


def values(spec: JobSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json")


def test_data_parallel_is_one_replica_of_all_ranks_on_all_samples() -> None:
    spec = parse_spec(GIVEN)
    ddp = values(baseline_of(spec, "ddp"))
    assert ddp.pop("exchange") == values(parse_spec({}))["exchange"], "it has none, so nothing of it can be wrong"
    assert changed({k: v for k, v in values(spec).items() if k != "exchange"}, ddp) == {
        "name": "pair-ddp",
        "controls": [],
        "method": {"kind": "solo"},
        "replicas.count": 1,
        "replicas.ranks": 6,
        "training.batch_size": 72,
    }


@pytest.mark.parametrize(
    ("baseline", "method"),
    [
        ("local_sgd", {"kind": "local_sgd"}),
        ("diloco", {"kind": "diloco", "outer_learning_rate": 0.7, "outer_momentum": 0.9}),
    ],
)
def test_averaging_is_as_often_and_by_the_same_way(baseline: Baseline, method: dict[str, Any]) -> None:
    spec = parse_spec(GIVEN)
    assert changed(values(spec), values(baseline_of(spec, baseline))) == {
        "name": f"pair-{baseline.replace('_', '-')}",
        "controls": [],
        "method": method,
        "exchange.topology": {"kind": "all"},
        "exchange.mode": "lockstep",
        "exchange.max_lag_steps": None,
        "exchange.max_offset_steps": None,
    }


def test_what_has_no_baseline_is_refused() -> None:
    with pytest.raises(SpecError, match=r"replicas\.count: is 1, and a baseline joins what several replicas do"):
        baseline_of(parse_spec({"method": {"kind": "solo"}, "replicas": {"count": 1}}), "ddp")
    averaged = parse_spec({"training": {"ema_decay": 0.9}})
    assert baseline_of(averaged, "ddp").training.ema_decay == 0.9
    with pytest.raises(SpecError, match=r"training\.ema_decay averages one replica's way"):
        baseline_of(averaged, "diloco")


def test_a_long_name_keeps_its_end() -> None:
    named = baseline_of(parse_spec({"name": "a" * 63}), "local_sgd").name
    assert (len(named), named[-11:]) == (63, "a-local-sgd")


def test_the_command_runs_the_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[JobSpec] = []

    def note(module: str, file: str, *words: str, stdout: object) -> int:
        ran.append(parse_spec(Path(file).read_bytes()))
        return 0

    monkeypatch.setattr(local, "run_module", note)
    path = tmp_path / "pair.json"
    path.write_text(parse_spec(GIVEN).model_dump_json())
    assert local.run([path], storage=tmp_path, seed=7, baseline="diloco") == 0
    assert ran == [baseline_of(parse_spec({**GIVEN, "seed": 7}), "diloco")]
