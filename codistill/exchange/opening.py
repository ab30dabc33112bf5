"""A replica's way into the exchange: from what a spec asks for to a mailbox."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from codistill.exchange.clock import PublishRule, snapshots_to_keep
from codistill.exchange.currency import Currency
from codistill.exchange.mailbox import Mailbox, MailboxLike
from codistill.exchange.snapshot import SnapshotId
from codistill.exchange.terms import Counters, MailboxSettings
from codistill.exchange.transport import Connect, MemoryTransport, SnapshotScope
from codistill.ranks import Ranks
from codistill.records import Recorder
from codistill.run_dir import RunDir
from codistill.spec import Exchange, replica_name
from codistill.topology import all_teachers_of, teachers_of

Shown = TypeVar("Shown")


@dataclass(frozen=True)
class Member:
    """A replica as its peers know it, and what it brings to the exchange."""

    run: RunDir
    me: SnapshotId
    """Replica, fence and incarnation (the version is not looked at)."""
    replicas: int
    ranks: Ranks
    connect: Connect
    ledger: Recorder
    counters: Counters
    should_stop: Callable[[], bool]


class OpenMailbox(Protocol):
    """`open_mailbox`, or what stands in for it."""

    def __call__(
        self,
        member: Member,
        exchange: Exchange,
        currency: Currency[Shown],
        rule: PublishRule,
        *,
        checkpoint_interval_steps: int,
        timeout_s: float,
    ) -> MailboxLike[Shown]: ...


def open_mailbox(
    member: Member,
    exchange: Exchange,
    currency: Currency[Shown],
    rule: PublishRule,
    *,
    checkpoint_interval_steps: int,
    timeout_s: float,
) -> Mailbox[Shown]:
    """The member's end of `exchange`, for what `currency` says.

    `checkpoint_interval_steps` says how far a killed replica may go back, hence which snapshots lockstep still needs.
    """
    lockstep = exchange.mode == "lockstep"
    keep = snapshots_to_keep(
        lockstep=lockstep,
        replicas=member.replicas,
        ranks=member.ranks.count,
        interval_steps=rule.interval_steps,
        checkpoint_interval_steps=checkpoint_interval_steps,
        every=currency.every,
    )
    me = member.me
    scope = SnapshotScope(member.run, me.fence, me.incarnation, me.replica, member.replicas, keep)
    transport = member.connect(scope)
    settings = MailboxSettings(
        me=me,
        teachers=all_teachers_of(exchange.topology, me.replica, member.replicas),
        # Where each snapshot counts, whoever is heard at any time is listened to always.
        teachers_at=None
        if currency.every
        else lambda number: teachers_of(exchange.topology, me.replica, member.replicas, number),
        rule=rule,
        mode=exchange.mode,
        threaded=not lockstep and not isinstance(transport, MemoryTransport),
        max_lag_steps=exchange.max_lag_steps,
        max_offset_steps=exchange.max_offset_steps,
        keep_in=member.run.snapshots(replica_name(me.replica)) if exchange.keep_snapshots else None,
        timeout_s=timeout_s,
    )
    return Mailbox(
        transport,
        settings,
        member.ledger,
        currency,
        member.counters,
        ranks=member.ranks,
        should_stop=member.should_stop,
    )
