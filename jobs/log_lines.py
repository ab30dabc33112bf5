"""How the service writes its log: one line a record, whatever stands in it, and no secrets.

What a job or a request brought along must neither begin a line of its own nor steer a terminal; `CODISTILL_LOG_FORMAT`
chooses between lines for people and JSON for programs.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from enum import StrEnum

MOST_BYTES = 2048
"""Of one field."""
_SECRETS = (
    (re.compile(r"(codistill_[a-z2-7]{12}_)[A-Za-z0-9_-]{43}"), r"\1[redacted]"),
    (re.compile(r"(?i)(bearer\s+)[^\s\"',]+"), r"\1[redacted]"),
    (re.compile(r"(://[^/\s:@]*:)[^/\s@]+@"), r"\1[redacted]@"),
    (re.compile(r"(?i)((?:password|passwd|secret|token|api_?key)\s*[=:]\s*)[^\s\"',;&]+"), r"\1[redacted]"),
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class LogFormat(StrEnum):
    """For whom a line is."""

    TEXT = "text"
    JSON = "json"


def safe(text: str) -> str:
    """`text` without secrets, in one line, with control characters escaped; at most `MOST_BYTES` of UTF-8."""
    for secret, instead in _SECRETS:
        text = secret.sub(instead, text)
    text = _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    whole = text.encode("utf-8", "backslashreplace")
    if len(whole) <= MOST_BYTES:
        return whole.decode()
    mark = "...[cut]"
    return whole[: MOST_BYTES - len(mark)].decode(errors="ignore") + mark


class Lines(logging.Formatter):
    """For people: `time level logger: message`."""

    def format(self, record: logging.LogRecord) -> str:
        value = fields(record)
        error = f" | {value['error']}" if "error" in value else ""
        return f"{value['time']} {value['level']} {value['logger']}: {value['message']}{error}"


class JsonLines(logging.Formatter):
    """For programs: an object a line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(fields(record))


def fields(record: logging.LogRecord) -> dict[str, str]:
    """What is told of a record, each made safe."""
    found = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": safe(record.name),
        "message": safe(record.getMessage()),
    }
    if record.exc_info:
        # Its end says what happened.
        text = logging.Formatter().formatException(record.exc_info)
        found["error"] = safe(text[-MOST_BYTES // 2 :])
    return found


def configure(wanted: LogFormat) -> None:
    """Have all that the service logs in this process written to standard error in this way. Again changes nothing."""
    logger = logging.getLogger("codistill")
    for old in [handler for handler in logger.handlers if isinstance(handler.formatter, Lines | JsonLines)]:
        logger.removeHandler(old)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if wanted is LogFormat.JSON else Lines())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
