"""Tests that are left out where a tool of theirs is missing: which, and how to get it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

CHROMIUM = shutil.which("chromium")
PROMTOOL = shutil.which("promtool") or shutil.which("promtool", path=str(Path(sys.executable).parent))
MISSING = {
    "page": [
        *([] if CHROMIUM else ["chromium"]),
        *(name for name in ("playwright", "axe_playwright_python") if importlib.util.find_spec(name) is None),
    ],
    "deploy": [] if PROMTOOL else ["promtool"],
}
"""Of each directory of tests, what it would need and is not there."""


def lines() -> dict[str, str]:
    """Of each directory, for the end of a run's report."""
    return {
        directory: f"tests/{directory} was left out, without {', '.join(missing)}; `make test-{directory}` sets it up"
        for directory, missing in MISSING.items()
        if missing
    }
