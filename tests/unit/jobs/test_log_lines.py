"""One line a record, whatever stands in it, and no secrets."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from jobs import cli
from jobs.callers import mint
from jobs.log_lines import MOST_BYTES, JsonLines, Lines, LogFormat, configure, safe

TOKEN = "codistill_4blhnvl5y5ni_Vb6ykdGdn9UNYDAqd5AM2S8vHVcOwucyiucCOfFWnu0"


def record(message: str, *values: object, error: BaseException | None = None) -> logging.LogRecord:
    about = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("codistill.api", logging.ERROR, __file__, 1, message, values, about)
    made.created = 1_000_000.5
    return made


NASTY = "a\r\nb\x1b[31m\x00\x7f\x9b\u2028 %n"


@pytest.mark.parametrize("formatter", [Lines(), JsonLines()])
def test_a_record_is_one_line_without_control_characters(formatter: logging.Formatter) -> None:
    text = formatter.format(record("job %s", NASTY, error=ValueError(NASTY)))
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    assert "%n" in text


def test_json_says_what_happened_and_text_the_same() -> None:
    value = json.loads(JsonLines().format(record("job %s: %d", "ä", 3)))
    assert value == {
        "time": "1970-01-12T13:46:40.500+00:00", "level": "error", "logger": "codistill.api", "message": "job ä: 3",
    }  # fmt: skip
    assert JsonLines().format(record("ä")).isascii()
    assert Lines().format(record("job %s", "x")) == "1970-01-12T13:46:40.500+00:00 error codistill.api: job x"
    assert safe("a\nb\x7f") == "a\\u000ab\\u007f"


def test_the_end_of_a_traceback_is_kept() -> None:
    try:
        raise ValueError("the cause at last")
    except ValueError as caught:
        value = json.loads(JsonLines().format(record("failed", error=caught)))
    assert value["error"].endswith("ValueError: the cause at last")
    assert "test_log_lines.py" in value["error"]


def test_a_field_has_a_limit_in_bytes() -> None:
    assert safe("x" * MOST_BYTES) == "x" * MOST_BYTES
    for long in ("x" * (MOST_BYTES + 1), "ä" * MOST_BYTES, "\n" * MOST_BYTES):
        cut = safe(long)
        assert MOST_BYTES - 4 <= len(cut.encode()) <= MOST_BYTES
        assert cut.endswith("...[cut]")
    assert safe("\ud800") == "\\ud800"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"token {TOKEN} was sent", TOKEN[-43:]),
        ("Authorization: Bearer abc.def-ghi", "abc.def-ghi"),
        ("cannot open postgresql+psycopg://ann:pa55word@db/jobs", "pa55word"),
        ("password=hunter2, next", "hunter2"),
        ("API_KEY: k-123 x", "k-123"),
        ("?token=t-1&a=b", "t-1"),
        ("x" * (MOST_BYTES - 20) + TOKEN, TOKEN[-43:-30]),
    ],
)
def test_secrets_are_told_of_and_not_told(text: str, secret: str) -> None:
    assert secret in text
    assert secret not in safe(text)


def test_what_is_no_secret_stays() -> None:
    for text in ("http://127.0.0.1:8700/api", "tokens: 3 of ann", "job pair-abc234: Move(RUNNING)", mint()[0]):
        assert safe(text) == text


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    found = logging.getLogger("codistill")
    before = found.handlers[:], found.level, found.propagate
    yield found
    found.handlers[:], found.level, found.propagate = before


def test_each_record_is_written_once_however_often_it_is_set_up(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(LogFormat.TEXT)
    configure(LogFormat.JSON)
    logging.getLogger("codistill.manager").info("a %s", "b")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "a b"


def test_an_unknown_format_is_said_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    monkeypatch.setenv("CODISTILL_HOME", str(tmp_path))
    monkeypatch.setenv("CODISTILL_LOG_FORMAT", "xml")
    assert cli.run(["serve"]) == 2
    assert "use text or json" in capsys.readouterr().err
