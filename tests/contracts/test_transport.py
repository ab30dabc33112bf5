"""What every transport promises, whichever way the bytes go."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codistill.exchange.clock import PublishRule
from codistill.exchange.mailbox import Mailbox
from codistill.exchange.prediction_records import OfPredictions, from_arrays
from codistill.exchange.predictions import Form, Rows, packed
from codistill.exchange.snapshot import Header, SnapshotId, header_of
from codistill.exchange.terms import Counters, MailboxSettings
from codistill.exchange.transport import FilesTransport, Hub, MemoryTransport, SnapshotUnavailable, Transport
from codistill.records import LEDGER, Recorder
from codistill.run_dir import RunDir
from codistill.spec import replica_name
from tests.contracts.publishing import KEEP, publish, weights

KINDS = ["memory", "files", pytest.param("object_store", marks=pytest.mark.ray)]


@dataclass
class Place:
    """Somewhere two replicas can meet."""

    kind: str
    run: RunDir
    connect: Callable[[int], Transport]


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    run = RunDir(tmp_path, "job")
    match request.param:
        case "memory":
            hub = Hub()
            yield Place("memory", run, lambda replica: MemoryTransport(hub, replica, keep=KEEP))
        case "files":
            yield Place("files", run, lambda replica: FilesTransport(run, replica, 2, keep=KEEP))
        case _:
            request.getfixturevalue("ray_cluster")
            import ray

            from cluster.directory import start_directory
            from cluster.transport import ObjectStoreTransport

            directory = start_directory(tmp_path.name)
            ray.get(directory.pid.remote())  # a process may take seconds to start on a busy machine
            yield Place(
                "object_store",
                run,
                lambda replica: ObjectStoreTransport(run, replica, namespace=tmp_path.name, keep=KEEP),
            )
            ray.kill(directory)


def announced(transport: Transport, replica: int = 0) -> list[Header]:
    report = transport.poll(0).get(replica)
    return [] if report is None else sorted(report.announced, key=lambda header: header.id)


def newest(transport: Transport) -> SnapshotId:
    return announced(transport)[-1].id


def assert_same(left: Any, right: Any) -> None:
    assert set(left) == set(right)
    for name in right:
        assert left[name].dtype == right[name].dtype
        np.testing.assert_array_equal(left[name], right[name], strict=True)


def test_what_is_published_is_not_changed_by_later_writes(place: Place) -> None:
    publisher, reader, mine = place.connect(0), place.connect(1), weights(1.0)
    header = header_of(SnapshotId(0, 1, 0, 1), mine, 0.0)
    publisher.publish(header, mine)
    for array in mine.values():
        array[...] = 0
    assert announced(reader) == [header]
    assert_same(reader.fetch(header), weights(1.0))


def test_fetched_arrays_equal_what_was_published_and_cannot_be_written(place: Place) -> None:
    publisher, reader = place.connect(0), place.connect(1)
    header = publish(publisher, 3)
    arrays = reader.fetch(header)
    assert_same(arrays, weights(3))
    assert header_of(header.id, arrays, header.created_at) == header
    for array in arrays.values():
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_last_ones_are_kept_and_older_ones_are_unavailable(place: Place) -> None:
    publisher, reader = place.connect(0), place.connect(1)
    headers = [publish(publisher, version) for version in (10, 20, 30)]
    assert announced(reader) == headers[1:]
    assert_same(reader.fetch(headers[1]), weights(20))
    with pytest.raises(SnapshotUnavailable, match="version=10"):
        reader.fetch(headers[0])


def test_newest_is_by_fence_then_incarnation_then_version(place: Place) -> None:
    reader = place.connect(1)
    publish(place.connect(0), 40)
    restarted = place.connect(0)
    publish(restarted, 30, incarnation=1)
    assert newest(reader) == SnapshotId(0, 1, 1, 30)
    assert_same(reader.fetch(announced(reader)[-1]), weights(30))
    publish(place.connect(0), 20, fence=2)
    assert newest(reader) == SnapshotId(0, 2, 0, 20)
    publish(restarted, 50, incarnation=1)  # one that was given up still speaks: it is not the newest
    assert newest(reader) == SnapshotId(0, 2, 0, 20)


def test_peers_hear_each_others_steps(place: Place) -> None:
    first, second = place.connect(0), place.connect(1)
    first.poll(5)
    assert second.poll(7)[0].step == 5
    assert first.poll(6)[1].step == 7
    assert second.poll(8)[0].step == 6
    first.poll(2)  # restarted from a checkpoint
    assert second.poll(9)[0].step == 2


def test_reader_keeps_its_arrays_after_the_publisher_drops_them(place: Place) -> None:
    publisher, reader = place.connect(0), place.connect(1)
    arrays = reader.fetch(publish(publisher, 1))
    for version in range(2, 8):
        publish(publisher, version)
    assert_same(arrays, weights(1))


def test_announced_snapshots_outlive_a_clean_end(place: Place) -> None:
    publisher, reader = place.connect(0), place.connect(1)
    headers = [publish(publisher, version) for version in (1, 2)]
    publisher.close()
    del publisher
    assert announced(reader) == headers
    for header in headers:
        assert_same(reader.fetch(header), weights(header.id.version))


def test_predictions_arrive_bit_by_bit_and_those_dropped_in_between_are_counted(place: Place) -> None:
    form, rule = Form("top_k", 300, (4,), 8), PublishRule(burn_in_steps=0, interval_steps=1)

    def mailbox(replica: int) -> Mailbox[Sequence[Rows]]:
        who = SnapshotId(replica, 1, 0, 0)
        settings = MailboxSettings(who, (1 - replica,), rule, "async", threaded=False)
        ledger = Recorder(None, LEDGER, fence=1, incarnation=0)
        return Mailbox(place.connect(replica), settings, ledger, OfPredictions(form), Counters())

    @cache
    def said(version: int) -> Rows:
        logits = torch.randn(800, 4, 300, generator=torch.Generator().manual_seed(version))
        return Rows(np.arange(800) * 7, np.full(800, version), packed(form, logits, torch.zeros(800, 4).long()))

    publisher, reader = mailbox(0), mailbox(1)
    publisher.publish(0, [said(0)])
    taken = list(reader.read(0))
    for version in range(1, 5):
        publisher.publish(version, [said(version)])
    taken += reader.read(5)
    assert [held.header.id.version for held in taken] == [0, 3, 4]
    for held in taken:
        rows, expected = from_arrays(form, held.arrays), said(held.header.id.version)
        assert_same({"made_at": rows.made_at, **rows.columns}, {"made_at": expected.made_at, **expected.columns})
        assert not any(column.flags.writeable for column in rows.columns.values())
    assert (reader.counters.missed, reader.counters.unavailable, reader.counters.rejected) == (2, 0, 0)


def test_a_file_left_unfinished_is_seen_by_nobody_and_cleared_away(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "job")
    publisher, reader = (FilesTransport(run, replica, 2, keep=KEEP) for replica in (0, 1))
    header = publish(publisher, 1)
    unfinished = run.exchange(replica_name(0)) / f".{dataclasses.replace(header.id, version=9).stem}.safetensors.tmp"
    unfinished.write_bytes(b"half of it")
    assert announced(reader) == [header]
    publish(FilesTransport(run, 0, 2, keep=KEEP), 2, incarnation=1)
    assert not unfinished.exists()


PUBLISHER = """
import sys, time
from pathlib import Path
from codistill.exchange.transport import FilesTransport
from codistill.run_dir import RunDir
from codistill.spec import replica_name
from tests.contracts.publishing import publish
publish(FilesTransport(RunDir(Path(sys.argv[1]), "job"), 0, 2, keep=2), 5)
print("published", flush=True)
time.sleep(60)
"""


@pytest.fixture
def publisher_pid(place: Place) -> Iterator[int]:
    """The process id of a publisher of version 5 that lives elsewhere."""
    match place.kind:
        case "files":
            command = [sys.executable, "-c", PUBLISHER, str(place.run.storage)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == "published\n"
                yield process.pid
                process.kill()
        case _:
            import ray

            from tests.contracts.publishing import Publisher

            actor: Any = ray.remote(Publisher).options(num_cpus=0).remote(place.run, place.run.storage.name)
            yield ray.get(actor.publish.remote(5))
            ray.kill(actor)


@pytest.mark.parametrize("place", KINDS[1:], indirect=True)  # in memory, the publisher is this process
def test_reader_keeps_its_arrays_after_the_publisher_is_killed(place: Place, publisher_pid: int) -> None:
    reader = place.connect(1)
    (header,) = announced(reader)
    arrays = reader.fetch(header)
    os.kill(publisher_pid, signal.SIGKILL)
    time.sleep(1.0)
    assert_same(arrays, weights(5))
