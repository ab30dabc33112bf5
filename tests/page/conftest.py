"""The page in a real browser: Debian's Chromium, driven by Playwright. `make test-page` sets both up."""

from __future__ import annotations

from tests.left_out import MISSING

collect_ignore_glob = ["test_*.py"] if MISSING["page"] else []
