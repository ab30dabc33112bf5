"""Facts from another process: in time, or not at all."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from codistill.spec import JobSpec
from jobs.describer import Describer
from tests.support import small_spec

READY = "import json, sys, time\nprint('{\"ready\": true}', flush=True)\n"
ECHO = (
    READY
    + "for line in sys.stdin:\n"
    + "    print(json.dumps({'facts': {'steps': json.loads(line)['training']['steps']}}), flush=True)\n"
)
SLOW = READY + "for line in sys.stdin:\n    time.sleep(60)\n"


@pytest.fixture
def made() -> Iterator[list[Describer]]:
    describers: list[Describer] = []
    yield describers
    for describer in describers:
        describer.close()


def describer(made: list[Describer], code: str, patience_s: float = 60.0) -> Describer:
    made.append(Describer({}, command=(sys.executable, "-c", code), patience_s=patience_s))
    return made[-1]


def spec(steps: int = 5) -> JobSpec:
    return small_spec(training={"steps": steps})


def test_facts_come_from_the_process_once_for_each_spec(made: list[Describer], tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    code = ECHO.replace("    print(json.dumps", f"    open({str(asked)!r}, 'a').write('x')\n    print(json.dumps")
    facts = describer(made, code).facts
    assert [facts(spec(5), 30), facts(spec(6), 30), facts(spec(5), 30)] == [{"steps": 5}, {"steps": 6}, {"steps": 5}]
    assert asked.read_text() == "xx"


def test_a_spec_that_takes_too_long_costs_the_process_its_life(made: list[Describer]) -> None:
    slow = describer(made, SLOW, patience_s=0.3)
    assert ready(slow)
    assert "takes a while" in str(slow.facts(spec(), 0.1))
    assert slow._child is not None
    assert "takes a while" in str(slow.facts(spec(6), 0.5))
    assert slow._child is None


def ready(one: Describer) -> bool:
    """Once its process answers."""
    one.warm_up()
    assert one._child is not None
    return one._child.ready_by(time.monotonic() + 30)


def test_an_answer_that_comes_late_is_for_whoever_asks_next(made: list[Describer], tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    late = ECHO.replace(
        "    print(json.dumps", f"    time.sleep(0.5); open({str(asked)!r}, 'a').write('x')\n    print(json.dumps"
    )
    one = describer(made, late)
    assert ready(one)
    assert "takes a while" in str(one.facts(spec(5), 0.1))
    assert one.facts(spec(6), 30) == {"steps": 6}, "not what was owed to the one before"
    assert one.facts(spec(5), 0.0) == {"steps": 5}
    assert asked.read_text() == "xx"


def test_one_that_still_starts_is_left_to_it(made: list[Describer]) -> None:
    late = describer(made, "import time; time.sleep(0.5)\n" + ECHO)
    assert "still starting" in str(late.facts(spec(), 0.05))
    assert late.facts(spec(), 30) == {"steps": 5}


def test_one_that_ends_by_itself_is_not_started_at_once_again(made: list[Describer], tmp_path: Path) -> None:
    started = tmp_path / "started"
    dead = describer(made, f"open({str(started)!r}, 'a').write('x')")
    assert "is torch installed" in str(dead.facts(spec(), 30))
    assert "is torch installed" in str(dead.facts(spec(), 30))
    assert started.read_text() == "x"


def test_what_it_cannot_say_is_said(made: list[Describer]) -> None:
    code = READY + "for line in sys.stdin:\n    print(json.dumps({'unknown': 'no such recipe'}), flush=True)\n"
    assert describer(made, code).facts(spec(), 30) == "no such recipe"


def test_nobody_waits_longer_than_the_limit_for_somebody_else(made: list[Describer]) -> None:
    slow = describer(made, SLOW)
    first = threading.Thread(target=slow.facts, args=(spec(), 3.0))
    first.start()
    time.sleep(0.1)
    began = time.monotonic()
    assert "others asked" in str(slow.facts(spec(6), 0.1))
    assert time.monotonic() - began < 2
    first.join()


def test_the_real_one_answers() -> None:
    real = Describer({})
    try:
        facts = real.facts(spec(), 60)
        assert not isinstance(facts, str), facts
        assert facts["parameters"] > 0
    finally:
        real.close()
