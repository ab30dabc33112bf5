"""The page in a real browser: Debian's Chromium, driven by Playwright. `make test-page` sets both up."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

CHROMIUM = shutil.which("chromium")
MISSING = [
    *([] if CHROMIUM else ["chromium"]),
    *(name for name in ("playwright", "axe_playwright_python") if importlib.util.find_spec(name) is None),
]
collect_ignore_glob = ["test_*.py"] if MISSING else []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if MISSING:
        terminalreporter.write_line(
            f"tests/page was left out, without {', '.join(MISSING)}; `make test-page` sets it up"
        )
