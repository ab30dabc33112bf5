"""A currency of which every snapshot counts: all are taken, oldest first, and those that were missed are counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from codistill.exchange.clock import EACH_KEPT, PublishRule, snapshots_to_keep
from codistill.exchange.mailbox import Mailbox
from codistill.exchange.outbox import Outbox
from codistill.exchange.prediction_records import OfPredictions, from_arrays, to_arrays
from codistill.exchange.predictions import Form, Rows
from codistill.exchange.shelf import HELD_BY_RANKS, Shelf
from codistill.exchange.snapshot import SnapshotId
from codistill.exchange.terms import Counters, MailboxSettings
from codistill.exchange.transport import Hub, MemoryTransport
from codistill.records import LEDGER, Recorder, _read_directory  # pyright: ignore[reportPrivateUsage]

FORM = Form("dense", 2)
RULE = PublishRule(burn_in_steps=2, interval_steps=2)


def said(version: int) -> Rows:
    """Of sample `version`, at that step."""
    evenly = np.full((1, 2), np.log(0.5), np.float16)
    return Rows(np.array([version]), np.array([version]), {"log_probabilities": evenly})


def mailbox(hub: Hub, ledger: Path, replica: int, *, keep: int = 16, incarnation: int = 0) -> Mailbox[Sequence[Rows]]:
    settings = MailboxSettings(SnapshotId(replica, 1, incarnation, 0), (1 - replica,), RULE, "async", threaded=False)
    recorder = Recorder(ledger, LEDGER, fence=1, incarnation=incarnation)
    return Mailbox(MemoryTransport(hub, replica, keep=keep), settings, recorder, OfPredictions(FORM), Counters())


def taken(box: Mailbox[Sequence[Rows]], step: int) -> list[tuple[int, int, bool]]:
    """Incarnation and version of what is heard, and whether it is new; in each is the one sample of its version."""
    heard = box.read(step)
    for held in heard:
        assert from_arrays(FORM, held.arrays).ids.tolist() == [held.header.id.version]
    return [(held.header.id.incarnation, held.header.id.version, held.is_new) for held in heard]


def test_a_reader_takes_all_there_are_oldest_first_and_then_stays_with_the_newest(tmp_path: Path) -> None:
    hub = Hub()
    reader, publisher = mailbox(hub, tmp_path / "r", 0), mailbox(hub, tmp_path / "p", 1)
    for step in range(8):
        publisher.publish(step, [said(step)])
    assert taken(reader, 8) == [(0, 2, True), (0, 4, True), (0, 6, True)]
    assert taken(reader, 8) == [(0, 6, False)]
    publisher.publish(8, [said(8)])
    assert taken(reader, 9) == [(0, 8, True)]
    reader._ledger.flush()  # pyright: ignore[reportPrivateUsage]
    rows = _read_directory(tmp_path / "r", LEDGER).to_pylist()
    assert [(row["version"], row["bytes_received"] > 0) for row in rows] == [
        (2, True), (4, True), (6, True), (6, False), (8, True),
    ]  # fmt: skip
    assert reader.counters.bytes_received == publisher.counters.bytes_sent == sum(r["bytes_received"] for r in rows)
    assert reader.counters.missed == 0


def test_what_was_dropped_before_it_could_be_taken_is_counted(tmp_path: Path) -> None:
    hub = Hub()
    reader, publisher = mailbox(hub, tmp_path / "r", 0), mailbox(hub, tmp_path / "p", 1, keep=2)
    publisher.publish(2, [said(2)])
    assert taken(reader, 2) == [(0, 2, True)]
    for step in range(4, 12, 2):
        publisher.publish(step, [said(step)])
    assert taken(reader, 12) == [(0, 8, True), (0, 10, True)]
    assert reader.counters.missed == 2, "versions 4 and 6"


def test_one_that_was_restarted_goes_on_from_an_older_step_and_nothing_is_missed(tmp_path: Path) -> None:
    hub = Hub()
    reader, publisher = mailbox(hub, tmp_path / "r", 0), mailbox(hub, tmp_path / "p", 1)
    for step in (2, 4, 6, 8):
        publisher.publish(step, [said(step)])
    taken(reader, 8)
    again = mailbox(hub, tmp_path / "p", 1, incarnation=1)
    for step in (4, 6):
        again.publish(step, [said(step)])
    assert taken(reader, 9) == [(1, 4, True), (1, 6, True)]
    mailbox(hub, tmp_path / "p", 1, incarnation=2).publish(12, [said(12)])
    assert taken(reader, 12) == [(2, 12, True)], "the first of it that was ever there"
    assert reader.counters.missed == 0


def test_what_the_gate_refuses_is_left_out_and_the_others_are_taken(tmp_path: Path) -> None:
    hub = Hub()
    reader, publisher = mailbox(hub, tmp_path / "r", 0), mailbox(hub, tmp_path / "p", 1)
    publisher.publish(2, [said(2)])
    bad = said(4)
    bad.columns["log_probabilities"][0] = 0.0  # twice as much as there is
    arrays = to_arrays(FORM, bad)
    transport = MemoryTransport(hub, 1, keep=16)  # past its own gate, as a damaged publisher might
    gate = OfPredictions(FORM).gate()
    transport.publish(gate.describe(SnapshotId(1, 1, 0, 4), arrays, 0.0), arrays)
    publisher.publish(6, [bad])
    publisher.publish(8, [said(8)])
    assert taken(reader, 8) == [(0, 2, True), (0, 8, True)]
    assert (publisher.counters.rejected, reader.counters.rejected) == (1, 1)
    assert reader.counters.missed == 2, "neither version 4 nor 6 was any use"


def test_what_could_not_be_announced_at_once_waits_in_a_queue() -> None:
    hub, counters = Hub(), Counters()
    transport, gate = MemoryTransport(hub, 0, keep=16), OfPredictions(FORM).gate()
    outbox = Outbox(transport, gate, SnapshotId(0, 1, 0, 0), counters, must_show=False, size=3)
    for version in range(1, 6):
        outbox.make_room()
        outbox.put(version, to_arrays(FORM, said(version)))
    outbox.publish()
    assert [header.id.version for header, _ in hub.snapshots[0]] == [3, 4, 5]
    assert counters.skipped == 2


def test_ranks_speak_of_the_oldest_they_hold_so_that_all_get_on() -> None:
    gate = OfPredictions(FORM).gate()
    arrays = to_arrays(FORM, said(1))
    headers = [gate.describe(SnapshotId(1, 1, 0, version), arrays, 0.0) for version in range(8)]
    shelf = Shelf(gate, size=EACH_KEPT + 1, every=True)
    for header in headers:
        shelf.put(header, arrays)
    assert shelf.ids() == [header.id for header in headers[:HELD_BY_RANKS]]
    assert [header.id.version for header, _ in shelf.use(headers[2].id)] == [0, 1, 2]
    shelf.shown = headers[2].id
    assert shelf.ids()[0] == headers[2].id
    assert [header.id.version for header, _ in shelf.use(headers[5].id)] == [3, 4, 5]


def test_publishers_keep_more_where_each_counts() -> None:
    sizes = {"replicas": 2, "ranks": 1, "interval_steps": 5, "checkpoint_interval_steps": 20}
    assert snapshots_to_keep(lockstep=False, **sizes) == 2
    assert snapshots_to_keep(lockstep=False, every=True, **sizes) == EACH_KEPT
    assert snapshots_to_keep(lockstep=True, every=True, **sizes) == 2 + 1 + 2 * 4
