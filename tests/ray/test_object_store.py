"""What the object store adds to the contract of transports: an owner that dies, a directory that is away."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from cluster.directory import find_directory, start_directory
from cluster.transport import ObjectStoreTransport
from codistill.exchange.snapshot import Header
from codistill.exchange.transport import SnapshotUnavailable
from codistill.run_dir import RunDir
from tests.contracts.publishing import KEEP, Publisher, publish, weights

pytestmark = pytest.mark.ray


@pytest.fixture
def run(ray_cluster: str, tmp_path: Path) -> Iterator[RunDir]:
    directory = start_directory(tmp_path.name)
    ray.get(directory.pid.remote())  # a process may take seconds to start on a busy machine
    yield RunDir(tmp_path, "job")
    ray.kill(directory)


def connect(run: RunDir, replica: int) -> ObjectStoreTransport:
    return ObjectStoreTransport(run, replica, namespace=run.storage.name, keep=KEEP)


def until(condition: Callable[[], bool], limit_s: float = 15.0) -> float:
    """Wait for `condition`; the seconds it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < limit_s, "waited in vain"
        time.sleep(0.05)
    return time.monotonic() - started


def announced(transport: ObjectStoreTransport, replica: int = 0) -> list[Header]:
    report = transport.poll(0).get(replica)
    return [] if report is None else list(report.announced)


def test_unread_snapshot_of_a_killed_publisher_is_unavailable_and_says_so(run: RunDir) -> None:
    actor: Any = ray.remote(Publisher).options(num_cpus=0).remote(run, run.storage.name)
    pid = ray.get(actor.publish.remote(5))
    reader = connect(run, 1)
    (header,) = announced(reader)
    os.kill(pid, signal.SIGKILL)
    reasons: list[str] = []

    def gone() -> bool:  # for a moment it can still be read
        try:
            reader.fetch(header)
        except SnapshotUnavailable as unavailable:
            reasons.append(str(unavailable))
        return bool(reasons)

    until(gone, limit_s=8)
    assert "its publisher has died" in reasons[0]
    assert announced(reader) == [header], "what is announced is not the same as what may be had"


def test_what_a_finished_publisher_announced_can_be_had_after_its_process_is_gone(run: RunDir) -> None:
    actor: Any = ray.remote(Publisher).options(num_cpus=0).remote(run, run.storage.name)
    for version in (5, 6):
        ray.get(actor.publish.remote(version))
    ray.get(actor.close.remote())
    ray.kill(actor)
    time.sleep(2.0)  # for this long, what died with it could still be read
    reader = connect(run, 1)
    for header, version in zip(announced(reader), (5, 6), strict=True):
        np.testing.assert_array_equal(reader.fetch(header)["conv"], weights(version)["conv"])


def test_directory_that_is_killed_costs_nothing_and_learns_everything_again(run: RunDir) -> None:
    publisher, reader = connect(run, 0), connect(run, 1)
    headers = [publish(publisher, version) for version in (1, 2)]
    assert announced(reader) == headers
    publisher.poll(2)
    os.kill(ray.get(find_directory(run.storage.name).pid.remote()), signal.SIGKILL)

    answers = [announced(reader) for _ in range(3)]
    assert all(answer in ([], headers) for answer in answers), "an error, or half an answer"
    until(lambda: publisher.poll(3)[0].step == 3 and publisher.poll(3)[0].announced != ())
    assert announced(reader) == headers
    np.testing.assert_array_equal(reader.fetch(headers[1])["conv"], weights(2)["conv"])


def test_poll_answers_the_last_known_while_nobody_is_there(run: RunDir) -> None:
    publisher, reader = connect(run, 0), connect(run, 1)
    header = publish(publisher, 1)
    assert announced(reader) == [header]
    ray.kill(find_directory(run.storage.name))
    until(lambda: announced(reader) == [header] and reader.unanswered > 0)
    np.testing.assert_array_equal(reader.fetch(header)["conv"], weights(1)["conv"])  # nobody need be asked for it
    publisher.publish(header, weights(2))  # not an error of training either


def test_dropped_snapshots_give_their_memory_back(run: RunDir) -> None:
    publisher = connect(run, 0)
    for version in range(6):
        publish(publisher, version)
    until(lambda: KEEP - 0.5 < used_bytes() / 1.6e6 < KEEP + 0.5, limit_s=5)


def used_bytes() -> int:
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    return get_memory_info_reply(
        get_state_from_address(ray.get_runtime_context().gcs_address)
    ).store_stats.object_store_bytes_used
