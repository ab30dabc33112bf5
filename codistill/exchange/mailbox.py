"""One replica's end of the exchange: publishes its snapshots, and holds the newest of each peer that passed the gate.

In `async` mode a helper thread does everything that could wait: it checks and sends what was copied, asks for news and
fetches it. The training thread only copies its weights (`publish`) and picks up what lies ready (`read`). In
`lockstep`, and between replicas that take turns in one process, there is no thread: `read` waits for the exact version.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol

from codistill.exchange.agreement import Agreed, Said, agree, agree_in_lockstep, pack, unpack
from codistill.exchange.clock import EACH_KEPT
from codistill.exchange.currency import Currency, Shown
from codistill.exchange.gate import Verdict
from codistill.exchange.inbox import Inbox, write_nobody, write_row
from codistill.exchange.outbox import Outbox
from codistill.exchange.shelf import Held, Shelf
from codistill.exchange.snapshot import Arrays, Header
from codistill.exchange.terms import Counters, MailboxSettings, StopRequested
from codistill.exchange.transport import Transport
from codistill.ranks import ALONE, Ranks
from codistill.records import Recorder
from codistill.spec import replica_name

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.1


class MailboxLike(Protocol[Shown]):
    """A replica's end of the exchange, as those who learn from it see it."""

    counters: Counters

    def await_peers(self, limit_s: float) -> None: ...

    def publish(self, step: int, shown: Shown) -> None: ...

    def publish_last(self, step: int, shown: Shown) -> None: ...

    def read(self, step: int) -> list[Held]: ...

    def close(self) -> None: ...


class Mailbox(Generic[Shown]):
    """See the module. Not shared between threads but for its own helper.

    With several `ranks`, each has a mailbox and fetches for itself; only the first publishes and writes the ledger.
    What teaches in a step is agreed: the newest snapshot that all ranks hold.
    """

    def __init__(
        self,
        transport: Transport,
        settings: MailboxSettings,
        ledger: Recorder,
        currency: Currency[Shown],
        counters: Counters,
        *,
        ranks: Ranks = ALONE,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._transport, self._settings, self._ledger = transport, settings, ledger
        self._ranks, self._should_stop = ranks, should_stop
        self._currency = currency
        self._outbox = Outbox(
            transport,
            currency.gate(),
            settings.me,
            counters,
            must_show=settings.mode == "lockstep",
            size=EACH_KEPT if currency.every else 1,
            keep_in=settings.keep_in,
        )
        self._inbox = Inbox(transport, settings, ledger, currency, counters, ranks=ranks, should_stop=should_stop)
        self._shown: int | None = None
        """The version published last."""
        self.counters = counters
        counters.quarantined = 0  # whoever was in an earlier incarnation is judged anew
        self._closing = threading.Event()
        self._failure: BaseException | None = None
        self._helper: threading.Thread | None = None

    # ---- training thread

    def await_peers(self, limit_s: float) -> None:
        """Before the first step: give the peers time to start, so that a short training is not over before they have.

        Not one of the waits that `async` is without: nobody has trained yet. Returns when every peer has shown itself,
        or after `limit_s`; raises `StopRequested` when asked to stop.
        """
        self._start_helper()
        if self._helper is None:
            return  # replicas that wait for exact versions, or take turns, are together anyway
        give_up = time.monotonic() + limit_s
        stopped = False
        while not stopped and (missing := self._inbox.unknown_peers()):
            if time.monotonic() > give_up:
                names = ", ".join(map(replica_name, missing))
                log.warning("%s did not show up within %g s; starting without", names, limit_s)
                break
            time.sleep(0.02)
            stopped = self._should_stop()
        if self._ranks.any(stopped):
            raise StopRequested

    def publish(self, step: int, shown: Shown) -> None:
        """Before step `step`: say how far this replica is, and publish version `step` if it is due."""
        self._inbox.step = step
        self._start_helper()
        if self._failure is not None:
            raise self._failure
        if self._settings.rule.due(step):
            self._copy(step, shown)
        if self._helper is None:
            self._publish_and_poll()

    def publish_last(self, step: int, shown: Shown) -> None:
        """After the last step: in async mode nobody waits for it, but those still training learn from the finished
        model from now on."""
        if self._settings.mode == "async" and self._shown != step:
            self._copy(step, shown)

    def read(self, step: int) -> list[Held]:
        """Who teaches in step `step`: ascending by replica, without those that have not been heard or are too old.
        Where each snapshot counts, a replica is there once for each that is new, oldest first.

        All ranks get the same. Writes the ledger. In lockstep raises `PeerTimeout` when a version does not come in
        time, and `StopRequested` when asked to stop meanwhile.
        """
        version = self._settings.rule.newest_due(step)
        if version is None or not self._inbox.shelves:
            return []
        self._inbox.step = step
        if self._helper is None:
            self._inbox.poll()
        with self._inbox.lock:
            self._inbox.begin_turn(self._settings.teachers_in(step))
        stopped = False
        if self._settings.mode == "lockstep":
            stopped = not self._inbox.wait_for(version)
        elif self._helper is None:
            self._inbox.take_newest()
        with self._inbox.lock:
            agreed = self._agree(stopped)
            self._inbox.end_turns({peer for peer, both in agreed.items() if both.chosen is not None})
            heard = [
                self._show(self._inbox.shelves[peer], step, header, arrays, both.peer_step)
                for peer, both in agreed.items()
                if both.chosen is not None and peer in self._inbox.turn.peers
                for header, arrays in self._inbox.shelves[peer].use(both.chosen)
            ]
            if not heard:
                write_nobody(self._ledger, step)
        return [held for held in heard if held is not None]

    def close(self) -> None:
        """Publish what still waits, stop the helper and close the transport."""
        self._closing.set()
        if self._helper is not None:
            self._helper.join(timeout=30)
        self._outbox.publish()
        self._transport.close()

    def _start_helper(self) -> None:
        """Not before the first step is known, which is what the helper tells and writes down."""
        if self._settings.threaded and self._helper is None:
            self._helper = threading.Thread(target=self._help, name="mailbox", daemon=True)
            self._helper.start()

    def _copy(self, step: int, shown: Shown) -> None:
        arrays = self._currency.arrays(shown, self._ranks, self._outbox.make_room())
        self._shown = step
        if self._ranks.leads:
            self._outbox.put(step, arrays)

    def _agree(self, stopped: bool) -> dict[int, Agreed]:
        """Of each peer: the snapshot that teaches now, and the peer's step as far as any rank has heard of it."""
        peers = self._inbox.turn.peers
        mine = [Said(tuple(self._inbox.shelves[peer].ids()), self._inbox.known_step(peer)) for peer in peers]
        gathered = [unpack(peers, numbers) for numbers in self._ranks.gather(pack(stopped, mine))]
        if any(rank_stopped for rank_stopped, _ in gathered):
            raise StopRequested
        by_peer = {peer: [said[at] for _, said in gathered] for at, peer in enumerate(peers)}
        for peer, said in by_peer.items():
            self._inbox.shelves[peer].wanted = frozenset(said[0].held)
        if self._settings.mode == "lockstep":
            return {peer: agree_in_lockstep(said, self._inbox.shelves[peer].newest) for peer, said in by_peer.items()}
        return {peer: agree(said) for peer, said in by_peer.items()}

    # ---- what the helper does; or `publish` and `read`, when there is none

    def _help(self) -> None:
        while not self._closing.wait(POLL_INTERVAL_S):
            try:
                self._publish_and_poll()
                self._inbox.take_newest()
            except BaseException as failure:
                self._failure = failure
                return

    def _publish_and_poll(self) -> None:
        self._outbox.publish()
        self._inbox.poll()

    def _show(self, shelf: Shelf, step: int, header: Header, arrays: Arrays, peer_step: int | None) -> Held | None:
        # What it published it has surely completed, even if its own word on that is still under way.
        lag = None if peer_step is None else max(peer_step - header.id.version, 0)
        offset = step - header.id.version
        if not self._settings.hears(lag, offset):
            write_row(self._ledger, step, header, lag, 0, Verdict.TOO_OLD)
            return None
        is_new, before = shelf.shown != header.id, shelf.shown
        if shelf.every and before is not None and header.id.of == before.of:
            self.counters.missed += self._settings.rule.due_between(before.version, header.id.version)
        shelf.shown = header.id
        received = self._ranks.count * header.num_bytes if is_new else 0  # each rank has fetched it
        self.counters.bytes_received += received
        write_row(self._ledger, step, header, lag, received, Verdict.ACCEPTED)
        return Held(header, arrays, lag, offset, is_new, shelf.gate.quarantined)
