"""Following a log over HTTP: where the next answer is to begin, and bytes that become text."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx2

CONNECT_S, SILENCE_S = 20.0, 90.0
"""A service ends such an answer after a minute, whether anything was written or not."""


class LogReader:
    """What one reader has seen of a log."""

    def __init__(self, replica: str, tail_lines: int | None) -> None:
        self._replica, self._tail_lines = replica, tail_lines
        self._offset: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def request(self, job_id: str) -> dict[str, Any]:
        """What to ask for next, as the HTTP client takes it."""
        start = {"tail": self._tail_lines} if self._offset is None else {"offset": self._offset}
        params = {"replica": self._replica, "follow": "true", **start}
        return {
            "url": f"/api/v1/jobs/{quote(job_id, safe='')}/logs",
            "params": {name: value for name, value in params.items() if value is not None},
            "timeout": httpx2.Timeout(CONNECT_S, read=SILENCE_S),
        }

    def begin(self, headers: Mapping[str, str]) -> None:
        """An answer has begun."""
        self._offset = int(headers["Codistill-Offset"])

    def text(self, chunk: bytes) -> str:
        """What has come, as far as its letters are whole."""
        assert self._offset is not None
        self._offset += len(chunk)
        return self._decoder.decode(chunk)
