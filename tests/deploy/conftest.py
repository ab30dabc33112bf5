"""Alerts as Prometheus itself reads them, by its `promtool`. `make test-deploy` fetches it."""

from __future__ import annotations

from tests.left_out import MISSING

collect_ignore_glob = ["test_alerts.py"] if MISSING["deploy"] else []
