"""The exchange under random timing, and what the gate keeps out."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from codistill.exchange.clock import PublishRule, snapshots_to_keep
from codistill.exchange.gate import Gate, Verdict
from codistill.exchange.mailbox import Mailbox
from codistill.exchange.snapshot import BF16, SnapshotId, digest_of, header_of, norm_of, schema_of
from codistill.exchange.terms import Counters, MailboxSettings, PeerTimeout, SnapshotRefused
from codistill.exchange.transport import Hub, MemoryTransport, SnapshotUnavailable
from codistill.exchange.turns import Turn
from codistill.exchange.weights import OfWeights, published
from codistill.ranks import ALONE, Ranks
from codistill.records import LEDGER, Recorder, _read_directory  # pyright: ignore[reportPrivateUsage]
from codistill.spec import TravelPrecision

RULE = PublishRule(burn_in_steps=0, interval_steps=1)


def mailbox(
    hub: Hub,
    directory: Path,
    replica: int,
    module: nn.Module,
    *,
    incarnation: int = 0,
    mode: str = "async",
    precision: TravelPrecision = "fp32",
    max_lag_steps: int | None = None,
    max_offset_steps: int | None = None,
    threaded: bool = False,
    teachers: tuple[int, ...] | None = None,
    teachers_at: Callable[[int], tuple[int, ...]] | None = None,
    rule: PublishRule = RULE,
    ranks: Ranks = ALONE,
) -> Mailbox[nn.Module]:
    settings = MailboxSettings(
        me=SnapshotId(replica, 1, incarnation, 0),
        teachers=teachers or (1 - replica % 2,),
        teachers_at=teachers_at,
        rule=rule,
        mode=mode,  # pyright: ignore[reportArgumentType]
        threaded=threaded,
        max_lag_steps=max_lag_steps,
        max_offset_steps=max_offset_steps,
        timeout_s=0.05,
    )
    ledger = Recorder(directory / f"ledger-{replica}", LEDGER, fence=1, incarnation=incarnation)
    transport, currency = MemoryTransport(hub, replica, keep=2), OfWeights(module, precision)
    return Mailbox(transport, settings, ledger, currency, Counters(), ranks=ranks)


def rows(box: Mailbox[nn.Module], directory: Path, replica: int) -> list[dict[str, object]]:
    box._ledger.flush()  # pyright: ignore[reportPrivateUsage]
    return _read_directory(directory / f"ledger-{replica}", LEDGER).to_pylist()


def set_to(module: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
    return module


def value_of(incarnation: int, version: int) -> float:
    return 10_000.0 + 100.0 * incarnation + version


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(st.sampled_from(["reader", "publisher", "restart"]), max_size=40))
def test_random_timing_never_mixes_or_goes_back(tmp_path: Path, events: list[str]) -> None:
    """Lag is never negative; versions never fall within an incarnation; a snapshot is one version's weights only."""
    hub, module = Hub(), nn.Linear(2, 2)
    reader, publisher = mailbox(hub, tmp_path, 0, module), mailbox(hub, tmp_path, 1, module)
    reader_step = publisher_step = incarnation = 0
    newest = (0, -1)
    for event in events:
        if event == "publisher":
            # Version v of incarnation i holds the value 10,000 + 100 i + v everywhere: near enough for the gate.
            publisher.publish(publisher_step, set_to(nn.Linear(2, 2), value_of(incarnation, publisher_step)))
            newest = (incarnation, publisher_step)
            publisher_step += 1
        elif event == "restart":
            incarnation += 1
            publisher_step //= 2
            publisher = mailbox(hub, tmp_path, 1, module, incarnation=incarnation)
        else:
            for held in reader.read(reader_step):
                who = held.header.id
                assert (who.incarnation, who.version) == newest
                assert held.lag_steps is not None
                assert held.lag_steps >= 0
                assert held.offset_steps == reader_step - who.version
                for array in held.arrays.values():
                    assert (array == value_of(who.incarnation, who.version)).all()
            reader_step += 1


def test_a_poisoned_teacher_is_stopped_at_both_doors(tmp_path: Path) -> None:
    hub, module = Hub(), nn.Linear(2, 2)
    reader, publisher = mailbox(hub, tmp_path, 0, module), mailbox(hub, tmp_path, 1, module)
    publisher.publish(0, set_to(nn.Linear(2, 2), 1.0))
    assert [held.header.id.version for held in reader.read(0)] == [0]

    publisher.publish(1, set_to(nn.Linear(2, 2), float("nan")))
    assert publisher.counters.rejected == 1
    assert [held.header.id.version for held in reader.read(1)] == [0], "the good one stays"

    transport = MemoryTransport(hub, 1, keep=2)  # past its own gate, as a damaged publisher might
    for version, value, verdict in ((2, float("inf"), "non_finite"), (3, 1000.0, "norm_out_of_bound")):
        bad = {name: np.full(a.shape, value, a.dtype) for name, a in _arrays(module).items()}
        transport.publish(header_of(SnapshotId(1, 1, 0, version), bad, 0.0), bad)
        assert [held.header.id.version for held in reader.read(version)] == [0]
        assert rows(reader, tmp_path, 0)[-2]["verdict"] == verdict
    assert reader.counters.rejected == 2


def _arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}


def test_the_gate_knows_every_fault() -> None:
    good = {"w": np.ones((2, 3), np.float32), "n": np.array(4)}
    gate = Gate(schema_of(good))
    header = header_of(SnapshotId(0, 1, 0, 7), good, 0.0)
    assert gate.judge(header, good) is Verdict.ACCEPTED
    flipped = {**good, "w": good["w"].copy()}
    flipped["w"].view(np.uint8)[0, 0] ^= 1
    assert gate.judge(header, flipped) is Verdict.BAD_DIGEST
    assert gate.judge(header, {"w": good["w"]}) is Verdict.WRONG_SCHEMA
    assert gate.judge(header, {**good, "w": np.ones((3, 2), np.float32)}) is Verdict.WRONG_SCHEMA
    assert gate.judge(dataclasses.replace(header, schema="other"), good) is Verdict.WRONG_SCHEMA
    huge = {**good, "w": np.full((2, 3), 11.0, np.float32)}
    assert gate.judge(header_of(header.id, huge, 0.0), huge) is Verdict.NORM_OUT_OF_BOUND
    grown = {**good, "w": np.full((2, 3), 9.0, np.float32)}
    assert gate.judge(header_of(header.id, grown, 0.0), grown) is Verdict.ACCEPTED


def test_digest_norm_and_schema_are_of_the_content() -> None:
    one = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(0, np.float32)}
    turned = {"a": np.asfortranarray(one["a"]), "b": one["b"]}
    assert digest_of(one) == digest_of(turned)
    assert norm_of(one) == pytest.approx(np.sqrt(55.0))
    assert norm_of({"n": np.array([3])}) == 0.0
    assert schema_of(one) != schema_of({"a": one["a"].astype(np.float64), "b": one["b"]})


def test_norm_of_half_precision_is_exact_and_sees_what_is_not_finite() -> None:
    values = np.array([3e4, 4e4, 0.5], np.float32)  # beyond fp16 when summed up
    assert norm_of({"w": values.astype(np.float16)}) == pytest.approx(5e4, rel=1e-3)
    bits = torch.tensor([3.0, -4.0]).bfloat16().view(torch.uint16).numpy()
    assert norm_of({f"w{BF16}": bits}) == 5.0
    assert norm_of({"w": bits}) == 0.0, "whole numbers by their name"
    for bad in ("nan", "inf"):
        bits = torch.tensor([1.0, float(bad)]).bfloat16().view(torch.uint16).numpy()
        many = np.concatenate([np.zeros(1 << 18, np.uint16), bits])
        assert not np.isfinite(norm_of({f"w{BF16}": many}))


def test_what_fp16_cannot_hold_is_refused_by_its_publisher_who_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub()
    box = mailbox(hub, tmp_path, 0, nn.Linear(2, 2), precision="fp16")
    box.publish(0, set_to(nn.Linear(2, 2), 7e4))
    assert (box.counters.rejected, hub.snapshots) == (1, {})
    assert "non_finite: 'weight' has entries beyond 65504, which fp16 does not hold; set exchange." in caplog.text
    box.publish(1, set_to(nn.Linear(2, 2), 6e4))
    assert box.counters.bytes_sent == 2 * 6


def test_a_nan_in_bf16_is_refused_at_both_doors(tmp_path: Path) -> None:
    hub, module = Hub(), nn.Linear(2, 2)
    reader = mailbox(hub, tmp_path, 0, module, precision="bf16")
    publisher = mailbox(hub, tmp_path, 1, module, precision="bf16")
    bad = published(set_to(nn.Linear(2, 2), float("nan")), "bf16")
    transport = MemoryTransport(hub, 1, keep=2)
    transport.publish(header_of(SnapshotId(1, 1, 0, 0), bad, 0.0), bad)
    assert reader.read(0) == []
    assert [row["verdict"] for row in rows(reader, tmp_path, 0)] == ["non_finite", "nobody"]
    publisher.publish(1, set_to(nn.Linear(2, 2), float("nan")))
    assert publisher.counters.rejected == 1
    publisher.publish(2, set_to(nn.Linear(2, 2), 1.0))
    (held,) = reader.read(2)
    assert held.header.num_bytes == 12


def test_a_peer_gone_too_stale_is_not_heard_and_comes_back(tmp_path: Path) -> None:
    hub, module = Hub(), nn.Linear(2, 2)
    reader, publisher = mailbox(hub, tmp_path, 0, module, max_lag_steps=1), mailbox(hub, tmp_path, 1, module)
    publisher.publish(0, module)
    assert len(reader.read(0)) == 1
    hub.steps[1] = 2
    assert reader.read(2) == []
    assert rows(reader, tmp_path, 0)[-1]["verdict"] == "too_old"
    publisher.publish(2, module)
    assert [held.header.id.version for held in reader.read(2)] == [2]


def test_a_dead_peer_is_not_heard_once_its_offset_is_too_large(tmp_path: Path) -> None:
    """Its lag stays 1, since it stands still; restarted, it is heard again at once, whatever its version."""
    hub, module = Hub(), nn.Linear(2, 2)
    reader = mailbox(hub, tmp_path, 0, module, max_lag_steps=2, max_offset_steps=3)
    mailbox(hub, tmp_path, 1, module).publish(4, module)
    hub.steps[1] = 5
    heard = {step: [(held.lag_steps, held.offset_steps) for held in reader.read(step)] for step in range(2, 10)}
    assert heard == {step: [(1, step - 4)] if step - 4 <= 3 else [] for step in range(2, 10)}
    assert [row["verdict"] for row in rows(reader, tmp_path, 0)] == ["accepted"] * 6 + ["too_old"] * 2
    mailbox(hub, tmp_path, 1, module, incarnation=1).publish(7, module)
    assert [held.header.id.version for held in reader.read(10)] == [7]


def test_a_lost_snapshot_means_the_old_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, module = Hub(), nn.Linear(2, 2)
    reader, publisher = mailbox(hub, tmp_path, 0, module), mailbox(hub, tmp_path, 1, module)
    publisher.publish(0, module)
    reader.read(0)

    def lost(*_: object) -> None:
        raise SnapshotUnavailable("its owner died")

    monkeypatch.setattr(MemoryTransport, "fetch", lost)
    publisher.publish(1, module)
    assert [held.header.id.version for held in reader.read(1)] == [0]
    assert reader.counters.unavailable == 1


class OfThree(Ranks):
    """One of three ranks that all hold the same."""

    def gather(self, mine: Sequence[int]) -> list[list[int]]:
        return [list(mine)] * 3


def test_what_each_rank_fetches_is_counted_for_all_of_them(tmp_path: Path) -> None:
    hub, module = Hub(), nn.Linear(2, 2)
    reader = mailbox(hub, tmp_path, 0, module, ranks=OfThree(0, 3))
    publisher = mailbox(hub, tmp_path, 1, module)
    for step in range(2):
        publisher.publish(step, module)
        assert len(reader.read(step)) == len(reader.read(step)) == 1
    assert publisher.counters.bytes_sent == 2 * 4 * 6
    assert reader.counters.bytes_received == 3 * 2 * 4 * 6
    assert [row["bytes_received"] for row in rows(reader, tmp_path, 0)] == [72, 0, 72, 0]


def test_a_teacher_stays_until_the_next_one_is_there(tmp_path: Path) -> None:
    """Peers 1 and 2 take turns; 2 is late, and later 1 has published nothing since."""
    hub, module = Hub(), nn.Linear(2, 2)
    reader = mailbox(hub, tmp_path, 0, module, teachers=(1, 2), teachers_at=lambda exchange: (1 + exchange % 2,))
    one, two = mailbox(hub, tmp_path, 1, module), mailbox(hub, tmp_path, 2, module)

    def heard(step: int) -> list[tuple[int, int, bool]]:
        return [(held.header.id.replica, held.header.id.version, held.is_new) for held in reader.read(step)]

    assert heard(0) == []
    one.publish(0, module)
    assert heard(0) == [(1, 0, True)]
    assert heard(1) == [(1, 0, False)], "it is 2's turn, who has not been heard"
    two.publish(1, module)
    assert heard(1) == [(2, 1, True)]
    assert reader._inbox.shelves[1].held == []  # pyright: ignore[reportPrivateUsage]
    assert heard(2) == [(1, 0, True)], "fetched again, since it had been let go"
    assert reader.counters.bytes_received == 3 * sum(p.nbytes for p in module.parameters())


def test_in_a_turn_one_snapshot_is_taken_however_teachers_and_reader_are_in_step(tmp_path: Path) -> None:
    """An exchange every 4 steps; whose turn it is publishes before, during and after it. One model a turn, and the one
    made for it where that comes in the first half."""
    hub, module, rule = Hub(), nn.Linear(2, 2), PublishRule(0, 4)
    reader = mailbox(
        hub, tmp_path, 0, module, teachers=(1, 2), teachers_at=lambda exchange: (1 + exchange % 2,), rule=rule
    )
    one, two = (mailbox(hub, tmp_path, replica, module, rule=rule) for replica in (1, 2))
    one.publish(0, module)
    two.publish(0, module)

    def heard(step: int) -> list[tuple[int, int]]:
        return [(held.header.id.replica, held.header.id.version) for held in reader.read(step)]

    assert [heard(step) for step in range(4)] == [[(1, 0)]] * 4
    assert heard(4) == [(1, 0)], "2 is not there yet with what belongs to this turn"
    two.publish(4, module)
    assert heard(5) == [(2, 4)]
    two.publish(8, module)
    assert heard(6) == [(2, 4)], "one is enough"
    assert heard(8) == heard(9) == [(2, 4)], "1 has nothing newer than version 0"
    assert heard(10) == [(1, 0)], "half of the turn is over: an old one is better than none"
    one.publish(12, module)
    assert heard(11) == [(1, 0)]
    assert heard(12) == [(1, 0)]
    assert heard(14) == [(2, 8)]
    assert reader.counters.bytes_received == 4 * sum(p.nbytes for p in module.parameters())


def test_a_turn_lasts_until_the_next_is_read(tmp_path: Path) -> None:
    """Between publishing and reading at the end of a turn, the helper asks nothing more of whoever had it."""
    hub, module, rule = Hub(), nn.Linear(2, 2), PublishRule(0, 4)
    reader = mailbox(
        hub, tmp_path, 0, module, teachers=(1, 2), teachers_at=lambda exchange: (1 + exchange % 2,), rule=rule
    )
    one = mailbox(hub, tmp_path, 1, module, rule=rule)
    one.publish(0, module)
    assert [held.header.id.version for held in reader.read(0)] == [0]
    one.publish(4, module)
    reader.publish(4, module)
    reader._inbox.take_newest()  # pyright: ignore[reportPrivateUsage]
    assert [held.header.id.version for held in reader.read(4)] == [0], "2 is not there yet"
    assert reader.counters.bytes_received == sum(p.nbytes for p in module.parameters())


def test_what_arrives_after_its_turn_is_let_go(tmp_path: Path) -> None:
    """The helper may still be fetching from one peer when the next one's turn begins."""
    hub, module = Hub(), nn.Linear(2, 2)
    reader = mailbox(hub, tmp_path, 0, module, teachers=(1, 2), teachers_at=lambda exchange: (1 + exchange % 2,))
    mailbox(hub, tmp_path, 1, module).publish(0, module)
    mailbox(hub, tmp_path, 2, module).publish(1, module)
    assert [held.header.id.replica for held in reader.read(1)] == [2]
    late = reader._inbox.shelves[1]  # pyright: ignore[reportPrivateUsage]
    (header,) = reader._inbox.reports[1].announced  # pyright: ignore[reportPrivateUsage]
    reader._inbox._take(1, late, header)  # pyright: ignore[reportPrivateUsage]
    assert late.held == []


def test_turns_remember_who_taught_last() -> None:
    first = Turn((1,)).with_heard({1})
    second = first.followed_by((2,), exact=False)
    assert (second.peers, second.with_heard(set())) == ((1, 2), second)
    third = second.followed_by((4,), exact=False)
    assert third == Turn((4,), (1,)), "2 never came"
    assert third.followed_by((1,), exact=False) == Turn((1,))
    assert third.with_heard({4}) == Turn((4,))
    assert second.followed_by((4,), exact=True) == Turn((4,))


def test_lockstep_says_who_did_not_come(tmp_path: Path) -> None:
    reader = mailbox(Hub(), tmp_path, 0, nn.Linear(2, 2), mode="lockstep")
    with pytest.raises(PeerTimeout, match=r"version 4 of replica-1 did not come within 0\.05 s"):
        reader.read(4)


@given(step=st.integers(0, 400), burn_in=st.integers(0, 100), interval=st.integers(1, 40))
def test_the_clock_agrees_with_itself(step: int, burn_in: int, interval: int) -> None:
    rule = PublishRule(burn_in, interval)
    published = [s for s in range(step + 1) if rule.due(s)]
    assert rule.newest_due(step) == (published[-1] if published else None)


def test_how_many_snapshots_are_kept() -> None:
    def keep(*, lockstep: bool, ranks: int = 1) -> int:
        return snapshots_to_keep(
            lockstep=lockstep, replicas=3, ranks=ranks, interval_steps=10, checkpoint_interval_steps=25
        )

    assert keep(lockstep=False) == 2
    assert keep(lockstep=False, ranks=2) == 4
    assert keep(lockstep=True) == 3 + 1 + 2 * 3


def test_in_lockstep_a_refused_snapshot_is_an_error_since_peers_wait_for_it(tmp_path: Path) -> None:
    box = mailbox(Hub(), tmp_path, 0, nn.Linear(2, 2), mode="lockstep")
    with pytest.raises(
        SnapshotRefused, match=r"version 0 of this replica may not be published \(non_finite: 'weight'\)"
    ):
        box.publish(0, set_to(nn.Linear(2, 2), float("nan")))


def test_the_first_step_waits_for_the_peers_but_not_for_ever(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub()
    box = mailbox(hub, tmp_path, 0, nn.Linear(2, 2), threaded=True)
    began = time.monotonic()
    box.await_peers(0.3)
    assert time.monotonic() - began >= 0.3
    assert "replica-1 did not show up within 0.3 s; starting without" in caplog.text

    timer = threading.Timer(0.3, lambda: MemoryTransport(hub, 1, keep=2).poll(0))
    timer.start()
    began = time.monotonic()
    box.await_peers(60.0)
    assert 0.2 < time.monotonic() - began < 30.0
    timer.join()
    box.close()


def test_counters_go_on_from_an_earlier_incarnation_but_for_who_is_in_quarantine_now() -> None:
    counters = Counters()
    held = counters
    counters.go_on_from(vars(Counters(bytes_sent=7, rejected=3, quarantined=2, readmitted=1)))
    assert held == Counters(bytes_sent=7, rejected=3, readmitted=1)
