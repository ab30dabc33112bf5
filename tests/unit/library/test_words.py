"""Durations and sizes in words."""

from __future__ import annotations

import pytest

from codistill.words import duration, size


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (86_400 * 3 + 3600 * 4 + 59, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, says: str) -> None:
    assert duration(seconds) == says


@pytest.mark.parametrize(
    ("num_bytes", "says"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (38_440, "38.4 kB"), (2.5e9, "2.5 GB"), (7e15, "7000.0 TB")],
)
def test_sizes(num_bytes: float, says: str) -> None:
    assert size(num_bytes) == says
