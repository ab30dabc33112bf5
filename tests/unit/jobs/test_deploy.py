"""What operators are given fits the code: figures that exist, alerts with a runbook each, files that are there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from jobs.figures import Facts, Room, replica_figures, service_figures
from jobs.latency import Latency
from jobs.usage import Usage
from tests.unit.jobs.fakes import beat

ROOT = Path(__file__).parents[3]
DASHBOARD = json.loads((ROOT / "deploy/grafana/codistill.json").read_text())
RULES: list[dict[str, Any]] = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())["groups"][0]["rules"]
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
LABELS_OF_PROMETHEUS = {"le", "job", "quantile"}


def offered() -> dict[str, set[str]]:
    """Names of figures, and their labels."""
    usage = [Usage("a", 1, 1.0, 1.0)]
    facts = Facts(waiting_by_owner={"a": 1}, waits_s=[1.0], ended_by_cause={"b": 1}, round_age_s=1.0, usage=usage)
    families = [
        *service_figures(facts, Room(1, 1.0, 1.0, 1.0, 1.0, {"the storage": 50.0}), "0"),
        *replica_figures({"a": {"replica-0": beat()}}, 0.0),
    ]
    found = {sample.name: set(sample.labels) for family in families for sample in family.samples}
    registry = CollectorRegistry()
    Latency(lambda *_: None, registry)  # type: ignore[arg-type, return-value]
    assert b"codistill_http_request_duration_seconds" in generate_latest(registry)
    for end in ("count", "bucket", "sum"):
        found[f"codistill_http_request_duration_seconds_{end}"] = {"method", "route", "status", "le"}
    return found


@pytest.mark.parametrize("expression", [*EXPRESSIONS, *(rule["expr"] for rule in RULES)])
def test_only_figures_and_labels_that_there_are_are_asked_for(expression: str) -> None:
    known = offered()
    names = set(re.findall(r"\bcodistill_\w+", expression))
    assert names <= known.keys()
    labels = set().union(*(known[name] for name in names)) | LABELS_OF_PROMETHEUS
    grouped = re.findall(r"by \(([^)]*)\)", expression)
    asked = {label.strip() for group in grouped for label in group.split(",")}
    asked |= set(re.findall(r"[{,](\w+)=", expression))
    assert asked <= labels


def test_each_panel_tells_its_lines_apart_by_labels_that_there_are() -> None:
    known = offered()
    for panel in DASHBOARD["panels"]:
        (target,) = panel["targets"]
        labels = set().union(*(known[name] for name in re.findall(r"\bcodistill_\w+", target["expr"])))
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels, panel["title"]
    boxes = [tuple(panel["gridPos"].values()) for panel in DASHBOARD["panels"]]
    assert len(set(boxes)) == len(boxes) == len({panel["id"] for panel in DASHBOARD["panels"]})


def test_every_figure_is_shown_somewhere() -> None:
    shown = set(re.findall(r"\bcodistill_\w+", " ".join([*EXPRESSIONS, *(rule["expr"] for rule in RULES)])))
    unseen = offered().keys() - shown
    assert unseen == {
        "codistill_build_info",
        "codistill_manager_fence",
        "codistill_replica_sent_bytes",
        "codistill_http_request_duration_seconds_sum",
    }


def test_every_alert_has_a_runbook_and_the_other_way_round() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    assert re.findall(r"^### (Codistill\w+)$", text, re.MULTILINE) == [rule["alert"] for rule in RULES]
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in RULES)


def test_security_names_files_and_tests_that_there_are() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    paths = set(re.findall(r"`((?:jobs|codistill)/[\w/.]+)`", text))
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
    tests = set(re.findall(r"`(test_\w+\.py)`", text))
    assert len(tests) > 5
    assert [name for name in tests if not list((ROOT / "tests").rglob(name))] == []
