"""What stops a run from outside, after the directory that knew it has been started again."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from cluster import handles
from cluster.handles import Handles


class Told:
    """A directory, as far as it is asked here."""

    def __init__(self) -> None:
        self.known: dict[str, bytes] = {}
        self.asked = 0
        self.registered = self

    def remote(self, replica: str) -> dict[str, bytes]:
        assert replica == "replica-1"
        self.asked += 1
        return self.known

    def knows(self, **values: Any) -> None:
        self.known = {name: pickle.dumps(value) for name, value in values.items()}


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    ended: list[str] = []
    monkeypatch.setattr(handles.ray, "get", lambda answer, timeout: answer)
    monkeypatch.setattr(handles.ray, "kill", ended.append)
    monkeypatch.setattr(handles, "remove_placement_group", ended.append)
    return ended


def test_what_was_told_once_is_known_for_as_long_as_the_run_lasts(killed: list[str]) -> None:
    directory = Told()
    known = Handles(directory, "replica-1")
    assert known.kill_workers() == 0
    known.keep(0)  # it had not been told yet
    directory.knows(controller="c0", workers=["w0"], placement_group="p0")
    known.keep(0)
    asked = directory.asked
    known.keep(0)
    assert directory.asked == asked, "one look at each incarnation"

    directory.knows()  # it has been started again
    assert known.kill_workers() == 1
    known.kill()
    assert killed == ["w0", "c0", "p0"]

    directory.knows(controller="c1", workers=["w1", "w2"], placement_group="p1")
    known.keep(1)
    directory.knows()
    assert known.kill_workers() == 2
    assert killed[3:] == ["w1", "w2"]
