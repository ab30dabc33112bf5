"""Alerts as Prometheus itself reads them, by its `promtool`. `make test-deploy` fetches it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

PROMTOOL = shutil.which("promtool") or shutil.which("promtool", path=str(Path(sys.executable).parent))
collect_ignore_glob = [] if PROMTOOL else ["test_alerts.py"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if PROMTOOL is None:
        terminalreporter.write_line("tests/deploy was left out, without promtool; `make test-deploy` fetches it")
