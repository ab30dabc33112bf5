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
from codistill import records
from codistill.exchange.snapshot import Header
from codistill.exchange.transport import SnapshotUnavailable
from codistill.run_dir import RunDir
from tests.contracts.publishing import KEEP, Publisher, publish, weights
from tests.datasets import write_text
from tests.support import final_weights, fingerprint, new_run, run_in_turns, small_spec

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


@pytest.mark.parametrize("form", ["top_k", "sampled"])
def test_predictions_of_text_are_learnt_from_as_through_memory(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Lockstep, bit for bit. 16 windows of 64 bytes are beyond what Ray keeps out of shared memory."""
    write_text(run.storage)
    monkeypatch.setenv("CODISTILL_DATA", str(run.storage))
    spec = small_spec(
        recipe={"kind": "text", "context": 64, "width": 8, "layers": 1, "heads": 2, "train_size": 40},
        exchange={"currency": {"kind": "predictions", "form": form}, "interval_steps": 4},
    )
    stored, memory = (new_run(run.storage, spec, name) for name in ("stored", "memory"))
    bytes_sent = run_in_turns(
        stored,
        connect=lambda scope: ObjectStoreTransport(scope.run, scope.index, namespace=run.storage.name, keep=scope.keep),
    )[0]["bytes_sent"]
    run_in_turns(memory)
    assert bytes_sent > 3 * 100_000
    for index in range(2):
        found = records.values(records.read(stored, f"replica-{index}", "metrics"), "predictions/found")[1]
        assert found[-1] > 50
        assert fingerprint(final_weights(stored, index)) == fingerprint(final_weights(memory, index))


def used_bytes() -> int:
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    return get_memory_info_reply(
        get_state_from_address(ray.get_runtime_context().gcs_address)
    ).store_stats.object_store_bytes_used
