"""Quarantine and readmission, against the rule read off the whole history instead of a state."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from codistill.exchange.gate import AGREEING, NORM_BOUND, REMEMBERED, Standing, Verdict, judge
from codistill.exchange.snapshot import Header, SnapshotId, header_of
from codistill.exchange.transport import Hub, MemoryTransport
from tests.unit.library.test_mailbox import mailbox, rows, set_to

Shown = tuple[int, float]
"""A version, and the norm of what was shown under it."""


def verdicts(shown: list[Shown]) -> tuple[list[Verdict], list[bool]]:
    """What the gate says, and whether the replica is in quarantine after each."""
    standing = Standing()
    said: list[Verdict] = []
    quarantined: list[bool] = []
    for version, norm in shown:
        header = Header(SnapshotId(1, 1, 0, version), "s", "d", 0, norm, 0.0)
        verdict, standing = judge(header, schema="s", digest="d", norm=norm, standing=standing)
        said.append(verdict)
        quarantined.append(standing.bad is not None)
    return said, quarantined


def one_after_another(*norms: float) -> list[Shown]:
    return list(enumerate(norms))


def in_bound(one: float, other: float) -> bool:
    low, high = sorted((one, other))
    return high == low or (low > 0 and high / low <= NORM_BOUND)


def by_history(shown: list[Shown]) -> list[Verdict]:
    """The rule as it is told: everything is looked up in what was shown and said before."""
    said: list[Verdict] = []
    began = 0  # where the history of accepted norms begins
    for at, (_, norm) in enumerate(shown):
        accepted = [n for (_, n), v in zip(shown[began:at], said[began:], strict=True) if v is Verdict.ACCEPTED and n]
        if not math.isfinite(norm):
            said.append(Verdict.NON_FINITE)
        elif not accepted or in_bound(norm, float(np.median(accepted[-REMEMBERED:]))):
            said.append(Verdict.ACCEPTED)
        elif norms_moved(shown[: at + 1], said):
            began = at
            said.append(Verdict.ACCEPTED)
        else:
            said.append(Verdict.NORM_OUT_OF_BOUND)
    return said


def norms_moved(shown: list[Shown], said: list[Verdict]) -> bool:
    """Whether the last is the third in succession that agrees with those before. What is not newer than all refused
    before it is passed over, but for one that is not finite."""
    run: list[float] = []
    newest_bad, is_news = -math.inf, False
    for (version, norm), verdict in zip(shown, [*said, Verdict.NORM_OUT_OF_BOUND], strict=True):
        is_news = version > newest_bad
        match verdict:
            case Verdict.ACCEPTED if is_news:
                run, newest_bad = [], -math.inf
            case Verdict.NORM_OUT_OF_BOUND if is_news:
                run = [*run, norm] if all(in_bound(norm, other) for other in run) else [norm]
                newest_bad = version
            case Verdict.NON_FINITE:
                run, newest_bad = [], max(newest_bad, version)
            case _:
                pass
    return is_news and len(run) == AGREEING


NORMS = st.sampled_from([0.0, 0.01, 1.0, 2.0, 9.0, 50.0, 90.0, 1e4, math.nan, math.inf])


@given(norms=st.lists(NORMS, max_size=30), back=st.lists(st.integers(0, 3), min_size=30, max_size=30))
def test_the_gate_is_the_rule_as_told(norms: list[float], back: list[int]) -> None:
    shown = [(2 * at - 3 * (step == 3), norm) for at, (norm, step) in enumerate(zip(norms, back, strict=False))]
    said, quarantined = verdicts(shown)
    assert said == by_history(shown)
    for verdict, inside in zip(said, quarantined, strict=True):
        assert inside or verdict is Verdict.ACCEPTED


OK, OUT, NAN = Verdict.ACCEPTED, Verdict.NORM_OUT_OF_BOUND, Verdict.NON_FINITE


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (one_after_another(1, 100, 1), [OK, OUT, OK]),
        (one_after_another(1, 100, 200, 150, 1, 1), [OK, OUT, OUT, OK, OUT, OUT]),
        (one_after_another(1, 0.05, 0.05, 0.05), [OK, OUT, OUT, OK]),
        (one_after_another(1, 0, 0, 0), [OK, OUT, OUT, OK]),
        (one_after_another(0, 5, 60), [OK, OK, OUT]),
        (one_after_another(*[1] * 8, *[9] * 8, 60), [OK] * 16 + [OUT]),  # the median of sixteen is 5
        (one_after_another(1, 100, math.nan, 100, 100, 100), [OK, OUT, NAN, OUT, OUT, OK]),
        (one_after_another(1, 100, 1e4, 100, 1e4, 1e4, 1e4), [OK, OUT, OUT, OUT, OUT, OUT, OK]),
        ([(1, 1.0), (5, math.nan), (3, math.nan), (4, 100.0), (6, 100.0), (7, 100.0)], [OK, NAN, NAN, OUT, OUT, OUT]),
        ([(1, 1.0), (5, 100.0), (4, 100.0), (3, 100.0), (5, 100.0)], [OK, OUT, OUT, OUT, OUT]),
    ],
)
def test_histories_by_hand(shown: list[Shown], expected: list[Verdict]) -> None:
    assert verdicts(shown)[0] == expected


def test_a_good_one_from_before_does_not_end_quarantine() -> None:
    assert verdicts([(1, 1.0), (5, math.nan), (4, 1.0), (6, 1.0)]) == ([OK, NAN, OK, OK], [False, True, True, False])


def test_a_peer_in_quarantine_is_seen_and_comes_back_by_itself(tmp_path: Path) -> None:
    hub, module = Hub(), nn.Linear(2, 2)
    reader, publisher = mailbox(hub, tmp_path, 0, module), MemoryTransport(hub, 1, keep=2)

    def show(version: int, value: float) -> list[tuple[int, bool]]:
        arrays = {n: p.detach().numpy() for n, p in set_to(nn.Linear(2, 2), value).named_parameters()}
        publisher.publish(header_of(SnapshotId(1, 1, 0, version), arrays, 0.0), arrays)
        return [(held.header.id.version, held.as_json()["quarantined"]) for held in reader.read(version)]

    assert show(0, 1.0) == [(0, False)]
    assert show(1, 100.0) == [(0, True)]
    assert show(2, 100.0) == [(0, True)]
    assert (reader.counters.quarantined, reader.counters.rejected, reader.counters.readmitted) == (1, 2, 0)
    assert show(3, 100.0) == [(3, False)]
    assert (reader.counters.quarantined, reader.counters.rejected, reader.counters.readmitted) == (0, 2, 1)
    said = [(row["step"], row["version"], row["verdict"]) for row in rows(reader, tmp_path, 0)]
    refused = [entry for entry in said if entry[2] != "accepted"]
    assert refused == [(1, 1, "norm_out_of_bound"), (2, 2, "norm_out_of_bound")]


def test_its_own_norm_that_moved_is_published_from_the_third_on(tmp_path: Path) -> None:
    hub = Hub()
    box = mailbox(hub, tmp_path, 1, nn.Linear(2, 2))
    for version, value in enumerate([1.0, 100.0, 100.0, 100.0]):
        box.publish(version, set_to(nn.Linear(2, 2), value))
    assert [header.id.version for header, _ in hub.snapshots[1]] == [0, 3]
    assert (box.counters.rejected, box.counters.quarantined, box.counters.readmitted) == (2, 0, 1)
