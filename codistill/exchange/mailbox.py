"""One replica's end of the exchange: publishes its snapshots, and holds the newest of each peer that passed the gate.

In `async` mode a helper thread does everything that could wait: it checks and announces what was staged, asks for news
and fetches it. The training thread only copies its weights (`publish`) and picks up what lies ready (`read`). In
`lockstep`, and between replicas that take turns in one process, there is no thread: `read` waits for the exact version.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from codistill.exchange.agreement import Agreed, Said, agree, agree_in_lockstep, pack, unpack
from codistill.exchange.clock import PublishRule
from codistill.exchange.gate import Gate, Verdict
from codistill.exchange.shelf import HELD_BY_RANKS, Held, Shelf
from codistill.exchange.snapshot import Header, SnapshotId, header_of, schema_of
from codistill.exchange.transport import PeerReport, SnapshotUnavailable, Staged, Transport
from codistill.exchange.turns import Turn
from codistill.exchange.weights import published
from codistill.ranks import ALONE, Ranks
from codistill.records import Recorder
from codistill.spec import replica_name

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.1


class StopRequested(Exception):
    """The replica was asked to stop while it waited for a peer."""


class SnapshotRefused(RuntimeError):
    """In lockstep, this replica's own snapshot does not pass the gate."""


class PeerTimeout(RuntimeError):
    """In lockstep, a peer's exact version did not come in time."""


@dataclass
class Counters:
    """What the exchange did so far; missing is counted, never swallowed."""

    bytes_sent: int = 0
    bytes_received: int = 0
    rejected: int = 0
    """Snapshots that did not pass the gate, own and peers'."""
    unavailable: int = 0
    """Fetches that came back empty: a dead owner, a dropped snapshot, a time-out."""
    skipped: int = 0
    """Own snapshots replaced by a newer one before they could be announced."""

    def as_metrics(self) -> dict[str, float]:
        return {f"exchange/{name}": float(value) for name, value in vars(self).items()}


@dataclass(frozen=True)
class MailboxSettings:
    """How a mailbox behaves."""

    me: SnapshotId
    """This replica, fence and incarnation (the version is not looked at)."""
    teachers: tuple[int, ...]
    """All that it ever learns from."""
    rule: PublishRule
    mode: Literal["async", "lockstep"]
    threaded: bool
    max_lag_steps: int | None = None
    timeout_s: float = 120.0
    teachers_at: Callable[[int], tuple[int, ...]] | None = None
    """Of an exchange, by its number, those of `teachers` that it is with; all of them, always, when None."""

    def teachers_in(self, step: int) -> tuple[int, ...]:
        """Whom it learns from in step `step`."""
        return self.teachers if self.teachers_at is None else self.teachers_at(self.rule.exchange(step))


class Mailbox:
    """See the module. Not shared between threads but for its own helper.

    With several `ranks`, each has a mailbox and fetches for itself; only the first publishes and writes the ledger.
    What teaches in a step is agreed: the newest snapshot that all ranks hold.
    """

    def __init__(
        self,
        transport: Transport,
        settings: MailboxSettings,
        ledger: Recorder,
        module: nn.Module,
        counters: Counters,
        *,
        ranks: Ranks = ALONE,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._transport, self._settings, self._ledger = transport, settings, ledger
        self._ranks, self._should_stop = ranks, should_stop
        schema = schema_of(published(module))
        self._own_gate = Gate(schema)
        size = 1 if ranks.count == 1 else HELD_BY_RANKS
        self._shelves = {peer: Shelf(Gate(schema), size) for peer in settings.teachers}
        self._turn = Turn(settings.teachers_in(0))
        """Shelves of peers that are not in it are empty."""
        self._reports: Mapping[int, PeerReport] = {}
        self._staged: tuple[SnapshotId, Staged] | None = None
        self._step = 0
        self._shown: int | None = None
        """The version published last."""
        self.counters = counters
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._failure: BaseException | None = None
        self._helper: threading.Thread | None = None
        if settings.threaded:
            self._helper = threading.Thread(target=self._help, name="mailbox", daemon=True)
            self._helper.start()

    # ---- training thread

    def await_peers(self, limit_s: float) -> None:
        """Before the first step: give the peers time to start, so that a short training is not over before they have.

        Not one of the waits that `async` is without: nobody has trained yet. Returns when every peer has shown itself,
        or after `limit_s`; raises `StopRequested` when asked to stop.
        """
        if self._helper is None:
            return  # replicas that wait for exact versions, or take turns, are together anyway
        give_up = time.monotonic() + limit_s
        stopped = False
        while not stopped and (missing := [peer for peer in self._shelves if self._known_step(peer) is None]):
            if time.monotonic() > give_up:
                names = ", ".join(map(replica_name, missing))
                log.warning("%s did not show up within %g s; starting without", names, limit_s)
                break
            time.sleep(0.02)
            stopped = self._should_stop()
        if self._ranks.any(stopped):
            raise StopRequested

    def publish(self, step: int, module: nn.Module) -> None:
        """Before step `step`: say how far this replica is, and publish version `step` if it is due."""
        self._step = step
        if self._failure is not None:
            raise self._failure
        if self._settings.rule.due(step):
            self._stage(step, module)
        if self._helper is None:
            self._announce_and_poll()

    def publish_last(self, step: int, module: nn.Module) -> None:
        """After the last step: in async mode nobody waits for it, but those still training learn from the finished
        model from now on."""
        if self._settings.mode == "async" and self._shown != step:
            self._stage(step, module)

    def read(self, step: int) -> list[Held]:
        """Who teaches in step `step`: ascending by replica, without those that have not been heard or are too old.

        All ranks get the same. Writes the ledger. In lockstep raises `PeerTimeout` when a version does not come in
        time, and `StopRequested` when asked to stop meanwhile.
        """
        version = self._settings.rule.newest_due(step)
        if version is None or not self._shelves:
            return []
        if self._helper is None:
            self._reports = self._transport.poll(step)
        self._begin_turn(self._settings.teachers_in(step))
        stopped = False
        if self._settings.mode == "lockstep":
            stopped = not self._wait_for(version)
        elif self._helper is None:
            self._take_newest()
        with self._lock:
            agreed = self._agree(stopped)
            self._end_turns({peer for peer, both in agreed.items() if both.chosen is not None})
            heard = [
                self._show(peer, self._shelves[peer], step, both.chosen, both.peer_step)
                for peer, both in agreed.items()
                if both.chosen is not None and peer in self._turn.peers
            ]
        return [held for held in heard if held is not None]

    def close(self) -> None:
        """Announce what is still staged, stop the helper and close the transport."""
        self._closing.set()
        if self._helper is not None:
            self._helper.join(timeout=30)
        self._announce_staged()
        self._transport.close()

    def _stage(self, step: int, module: nn.Module) -> None:
        self._ranks.average_buffers([module])
        self._shown = step
        if not self._ranks.leads:
            return
        snapshot = replace(self._settings.me, version=step)
        staged = self._transport.stage(published(module))
        with self._lock:
            self.counters.skipped += self._staged is not None
            self._staged = (snapshot, staged)

    def _begin_turn(self, now: tuple[int, ...]) -> None:
        with self._lock:
            self._turn = self._turn.followed_by(now, exact=self._settings.mode == "lockstep")
            self._clear_others()

    def _end_turns(self, heard: set[int]) -> None:
        self._turn = self._turn.with_heard(heard)
        self._clear_others()

    def _clear_others(self) -> None:
        for peer, shelf in self._shelves.items():
            if peer not in self._turn.peers:
                shelf.clear()

    def _agree(self, stopped: bool) -> dict[int, Agreed]:
        """Of each peer: the snapshot that teaches now, and the peer's step as far as any rank has heard of it."""
        peers = self._turn.peers
        mine = [Said(tuple(self._shelves[peer].ids()), self._known_step(peer)) for peer in peers]
        gathered = [unpack(peers, numbers) for numbers in self._ranks.gather(pack(stopped, mine))]
        if any(rank_stopped for rank_stopped, _ in gathered):
            raise StopRequested
        by_peer = {peer: [said[at] for _, said in gathered] for at, peer in enumerate(peers)}
        for peer, said in by_peer.items():
            self._shelves[peer].wanted = frozenset(said[0].held)
        if self._settings.mode == "lockstep":
            return {peer: agree_in_lockstep(said, self._shelves[peer].newest) for peer, said in by_peer.items()}
        return {peer: agree(said) for peer, said in by_peer.items()}

    # ---- what the helper does; or `publish` and `read`, when there is none

    def _help(self) -> None:
        while not self._closing.wait(POLL_INTERVAL_S):
            try:
                self._announce_and_poll()
                self._take_newest()
            except BaseException as failure:
                self._failure = failure
                return

    def _announce_and_poll(self) -> None:
        self._announce_staged()
        self._reports = self._transport.poll(self._step)

    def _announce_staged(self) -> None:
        with self._lock:
            waiting, self._staged = self._staged, None
        if waiting is None:
            return
        snapshot, staged = waiting
        header = header_of(snapshot, staged.arrays, time.time())
        verdict = self._own_gate.judge(header, staged.arrays)
        if verdict is not Verdict.ACCEPTED:
            self.counters.rejected += 1
            log.warning("version %d of this replica is not published: %s", snapshot.version, verdict)
            if self._settings.mode == "lockstep":
                raise SnapshotRefused(
                    f"version {snapshot.version} of this replica may not be published ({verdict}), and in lockstep its"
                    " peers wait for it; its weights have probably diverged: lower the learning rate or the weight"
                )
            return
        self._transport.announce(staged, header)
        self.counters.bytes_sent += header.num_bytes

    def _take_newest(self) -> None:
        for peer in self._turn.now:
            shelf = self._shelves[peer]
            report = self._reports.get(peer)
            candidates = [] if report is None else [h for h in report.announced if h.id not in shelf.refused]
            if not self._ranks.leads:  # what the first rank has, so that all have the same
                candidates = [header for header in candidates if header.id in shelf.wanted]
            newest = max(candidates, key=lambda header: header.id, default=None)
            if newest is not None and (shelf.newest is None or newest.id > shelf.newest):
                self._take(peer, shelf, newest)

    def _wait_for(self, version: int) -> bool:
        """Wait for this version of every peer; whether it came, rather than a request to stop."""
        deadline = time.monotonic() + self._settings.timeout_s
        waiting = set(self._turn.now)
        while waiting:
            waiting = {peer for peer in waiting if not self._has(peer, self._shelves[peer], version)}
            if waiting:
                if self._should_stop():
                    return False
                self._pause_in_lockstep(version, waiting, deadline)
        return True

    def _has(self, peer: int, shelf: Shelf, version: int) -> bool:
        """Take this version if it is there; whether nothing more is to be waited for."""
        if shelf.newest is not None and shelf.newest.version == version:
            return True
        report = self._reports.get(peer)
        exact = [] if report is None else [h for h in report.announced if h.id.version == version]
        newest = max(exact, key=lambda header: header.id, default=None)
        if newest is None:
            return False
        if newest.id in shelf.refused:  # nobody teaches in its place
            shelf.held.clear()
            return True
        shelf.held.clear()
        self._take(peer, shelf, newest)
        return shelf.newest == newest.id or newest.id in shelf.refused

    def _pause_in_lockstep(self, version: int, waiting: set[int], deadline: float) -> None:
        if time.monotonic() > deadline:
            names = ", ".join(replica_name(peer) for peer in sorted(waiting))
            raise PeerTimeout(
                f"version {version} of {names} did not come within {self._settings.timeout_s:g} s;"
                " see why they are slow, or raise limits.lockstep_timeout_s"
            )
        time.sleep(0.005)
        self._reports = self._transport.poll(self._step)

    def _take(self, peer: int, shelf: Shelf, header: Header) -> None:
        try:
            arrays = self._transport.fetch(header)
        except SnapshotUnavailable as reason:
            self.counters.unavailable += 1
            log.info("no new teacher from %s: %s", replica_name(peer), reason)
            return
        verdict = shelf.gate.judge(header, arrays)
        if verdict is Verdict.ACCEPTED:
            with self._lock:
                if peer in self._turn.now:  # it may have passed meanwhile
                    shelf.put(header, arrays)
            return
        self.counters.rejected += 1
        shelf.refused.add(header.id)
        log.warning("version %d of %s is refused: %s", header.id.version, replica_name(peer), verdict)
        self._write_ledger(self._step, header, None, 0, verdict)

    def _show(self, peer: int, shelf: Shelf, step: int, chosen: SnapshotId, peer_step: int | None) -> Held | None:
        header, arrays = shelf.use(chosen)
        # What it published it has surely completed, even if its own word on that is still under way.
        lag = None if peer_step is None else max(peer_step - header.id.version, 0)
        limit = self._settings.max_lag_steps
        if limit is not None and lag is not None and lag > limit:
            self._write_ledger(step, header, lag, 0, Verdict.TOO_OLD)
            return None
        is_new = shelf.shown != header.id
        shelf.shown = header.id
        received = header.num_bytes if is_new else 0
        self.counters.bytes_received += received
        self._write_ledger(step, header, lag, received, Verdict.ACCEPTED)
        return Held(header, arrays, lag, step - header.id.version, is_new)

    def _known_step(self, peer: int) -> int | None:
        report = self._reports.get(peer)
        return None if report is None else report.step

    def _write_ledger(self, step: int, header: Header, lag: int | None, received: int, verdict: Verdict) -> None:
        who = header.id
        self._ledger.add(
            step,
            teacher=replica_name(who.replica),
            teacher_fence=who.fence,
            teacher_incarnation=who.incarnation,
            version=who.version,
            lag_steps=lag,
            offset_steps=step - who.version,
            bytes_received=received,
            verdict=str(verdict),
        )
