"""When each alert fires, and when what looks like its cause does not make it fire."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.left_out import PROMTOOL

ALERTS = Path(__file__).parents[2] / "deploy/prometheus/alerts.yaml"
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
}


@dataclass(frozen=True)
class Case:
    """What Prometheus has seen, one value each 30 s, and what comes of it at a time."""

    alert: str
    series: dict[str, str]
    at: str
    fires: tuple[dict[str, str], ...]
    """The labels of each alert, but for its severity."""


DOWN = 'up{job="codistill"}'
HELD = 'codistill_manager_lease_held{instance="%s"}'
AGE = "codistill_manager_round_age_seconds"
NODES = "codistill_cluster_nodes"
COUNT = 'codistill_http_request_duration_seconds_count{method="GET",route="/",status="%s"}'
OLDEST = "codistill_queue_oldest_seconds"
FULL = 'codistill_disk_full{instance="%s"}'
ENDED = 'codistill_attempts_ended{cause="%s",instance="%s"}'
BEAT = 'codistill_replica_heartbeat_age_seconds{job_id="j",replica="replica-%d",instance="%s"}'

ONCE = ({},)
CASES = [
    Case("CodistillDown", {DOWN: "1 1 0x10"}, "3m", ({"job": "codistill"},)),
    Case("CodistillDown", {DOWN: "1 1 0x10"}, "2m30s", ()),
    Case("CodistillDown", {DOWN: "1 1 0 0 0 1x10"}, "4m", ()),
    Case("CodistillNoManager", {HELD % "a": "1 0x10"}, "90s", ONCE),
    Case("CodistillNoManager", {HELD % "a": "1 0 1x10"}, "90s", ()),
    Case("CodistillNoManager", {HELD % "a": "0x10", HELD % "b": "1x10"}, "4m", ()),
    Case("CodistillManagerStuck", {AGE: "1 61x10"}, "90s", ONCE),
    Case("CodistillManagerStuck", {AGE: "60x10"}, "4m", ()),
    Case("CodistillManagerStuck", {AGE: "1 40 70 1 40 70 1"}, "3m", ()),
    Case("CodistillNoNodes", {NODES: "2 0x10"}, "2m30s", ONCE),
    Case("CodistillNoNodes", {NODES: "2 0x10"}, "2m", ()),
    Case("CodistillNoNodes", {NODES: "1x10"}, "5m", ()),
    Case("CodistillErrors", {COUNT % "5xx": "0+3x40"}, "15m", ONCE),
    Case("CodistillErrors", {COUNT % "5xx": "0+1x40"}, "15m", ()),
    Case("CodistillErrors", {COUNT % "4xx": "0+300x40"}, "15m", ()),
    Case("CodistillErrors", {COUNT % "5xx": "0+10x6 60x34"}, "15m", ()),
    Case("CodistillQueueWaits", {OLDEST: "21601x30"}, "10m", ONCE),
    Case("CodistillQueueWaits", {OLDEST: "21601x30"}, "9m30s", ()),
    Case("CodistillQueueWaits", {OLDEST: "21600x30"}, "15m", ()),
    Case("CodistillQueueWaits", {OLDEST: "21601x10 5x20"}, "12m", ()),
    Case("CodistillDiskFull", {FULL % copy: "0 1x10" for copy in "ab"}, "2m30s", ONCE),
    Case("CodistillDiskFull", {FULL % "a": "0 1x10"}, "2m", ()),
    Case("CodistillDiskFull", {FULL % "a": "1 1 1 0 1 1 1 1"}, "3m", ()),
    Case("CodistillAttemptsLost", {ENDED % ("driver_lost", "a"): "10x10 14x100"}, "15m", ONCE),
    Case("CodistillAttemptsLost", {ENDED % ("driver_lost", "a"): "10x10 13x100"}, "15m", ()),
    Case("CodistillAttemptsLost", {ENDED % ("driver_lost", "a"): "10x10 14x200"}, "80m", ()),
    Case("CodistillAttemptsLost", {ENDED % ("failed", "a"): "10x10 99x100"}, "15m", ()),
    # Jobs that were deleted take their attempts with them: the figure falls, and is no counter that began again.
    Case("CodistillAttemptsLost", {ENDED % ("driver_lost", "a"): "20x10 8x100"}, "15m", ()),
    # Each copy of the service tells the same: two of them have not lost twice as many.
    Case("CodistillAttemptsLost", {ENDED % ("driver_lost", copy): "10x10 12x100" for copy in "ab"}, "15m", ()),
    Case("CodistillReplicaSilent", {BEAT % (1, "a"): "1 121x10"}, "3m", ({"job_id": "j", "replica": "replica-1"},)),
    Case("CodistillReplicaSilent", {BEAT % (1, "a"): "120x10"}, "5m", ()),
    Case(
        "CodistillReplicaSilent",
        {BEAT % (n, copy): "125x10" for n in range(2) for copy in "ab"},
        "5m",
        tuple({"job_id": "j", "replica": f"replica-{n}"} for n in range(2)),
    ),
]


def test_each_alert_is_seen_to_fire_and_not_to_fire() -> None:
    for wanted in (True, False):
        assert {case.alert for case in CASES if bool(case.fires) is wanted} == RULES.keys()


def test_prometheus_takes_the_rules() -> None:
    assert PROMTOOL is not None
    subprocess.run([PROMTOOL, "check", "rules", str(ALERTS)], check=True, capture_output=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}-{case.at}-{len(case.fires)}")
def test_alert(case: Case, tmp_path: Path) -> None:
    assert PROMTOOL is not None
    rule = RULES[case.alert]
    expected = [
        {"exp_labels": {**rule["labels"], **labels}, "exp_annotations": rule["annotations"]} for labels in case.fires
    ]
    test = {
        "interval": "30s",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "alert_rule_test": [{"eval_time": case.at, "alertname": case.alert, "exp_alerts": expected}],
    }
    path = tmp_path / "alerts.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "30s", "tests": [test]}))
    done = subprocess.run([PROMTOOL, "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
