"""What a replica has of its peers: what is known of them, and the snapshots that passed the gate."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from codistill.exchange.clock import EACH_KEPT
from codistill.exchange.currency import Currency
from codistill.exchange.gate import Verdict
from codistill.exchange.shelf import HELD_BY_RANKS, Shelf
from codistill.exchange.snapshot import Header
from codistill.exchange.terms import Counters, MailboxSettings, PeerTimeout
from codistill.exchange.transport import PeerReport, SnapshotUnavailable, Transport
from codistill.exchange.turns import Turn, worth_taking
from codistill.ranks import Ranks
from codistill.records import NOBODY, Recorder
from codistill.spec import replica_name

log = logging.getLogger(__name__)


class Inbox:
    """A shelf for each peer; those of peers whose turn it is not are empty.

    `take_newest` may be called by a helper thread. What both threads touch is behind `lock`.
    """

    def __init__(
        self,
        transport: Transport,
        settings: MailboxSettings,
        ledger: Recorder,
        currency: Currency[Any],
        counters: Counters,
        *,
        ranks: Ranks,
        should_stop: Callable[[], bool],
    ) -> None:
        self._transport, self._settings, self._ledger = transport, settings, ledger
        self._counters, self._should_stop = counters, should_stop
        self._leads = ranks.leads
        size = EACH_KEPT + 1 if currency.every else 1 if ranks.count == 1 else HELD_BY_RANKS
        self.shelves = {peer: Shelf(currency.gate(peer), size, currency.every) for peer in settings.teachers}
        self.turn = Turn(settings.teachers_in(0))
        self.reports: Mapping[int, PeerReport] = {}
        self.step = 0
        self._exchange = 0
        self.lock = threading.Lock()

    def poll(self) -> None:
        """Say how far this replica is, and hear of the others."""
        self.reports = self._transport.poll(self.step)

    def known_step(self, peer: int) -> int | None:
        """How far a peer is, as far as it was heard of."""
        report = self.reports.get(peer)
        return None if report is None else report.step

    def unknown_peers(self) -> list[int]:
        """Those of whom nothing was heard yet."""
        return [peer for peer in self.shelves if self.known_step(peer) is None]

    def begin_turn(self, now: tuple[int, ...]) -> None:
        """It is the turn of `now`; `lock` is held."""
        self._exchange = self._settings.rule.exchange(self.step)  # its number, until the next turn begins
        self.turn = self.turn.followed_by(now, exact=self._settings.mode == "lockstep")
        self._clear_others()

    def end_turns(self, heard: set[int]) -> None:
        """Let those go who have been replaced, `heard` being there; `lock` is held."""
        self.turn = self.turn.with_heard(heard)
        self._clear_others()

    def _clear_others(self) -> None:
        for peer, shelf in self.shelves.items():
            if peer not in self.turn.peers:
                shelf.clear()

    def take_newest(self) -> None:
        """Of everyone whose turn it is, fetch and check what is newer than what is held: all of it, oldest first, where
        each snapshot counts, or the newest."""
        for peer in self.turn.now:
            shelf = self.shelves[peer]
            report = self.reports.get(peer)
            candidates = [] if report is None else [h for h in report.announced if h.id not in shelf.refused]
            if not self._leads:  # what the first rank has, so that all have the same
                candidates = [header for header in candidates if header.id in shelf.wanted]
            newer = [header for header in candidates if shelf.newest is None or header.id > shelf.newest]
            newer.sort(key=lambda header: header.id)
            for header in newer if shelf.every else newer[-1:]:
                if not (self._leads and self._settings.in_turns) or self._is_worth_taking(header, shelf):
                    self._take(peer, shelf, header)

    def _is_worth_taking(self, header: Header, shelf: Shelf) -> bool:
        rule, step = self._settings.rule, self.step
        published_in = rule.exchange(header.id.version)
        return worth_taking(published_in, self._exchange, taken_in=shelf.taken_in, half_way=rule.half_way(step))

    def wait_for(self, version: int) -> bool:
        """Wait for this version of every peer; whether it came, rather than a request to stop."""
        deadline = time.monotonic() + self._settings.timeout_s
        waiting = set(self.turn.now)
        while waiting:
            waiting = {peer for peer in waiting if not self._has(peer, self.shelves[peer], version)}
            if waiting:
                if self._should_stop():
                    return False
                self._pause_in_lockstep(version, waiting, deadline)
        return True

    def _has(self, peer: int, shelf: Shelf, version: int) -> bool:
        """Take this version if it is there; whether nothing more is to be waited for."""
        if shelf.newest is not None and shelf.newest.version == version:
            return True
        report = self.reports.get(peer)
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
        self.poll()

    def _take(self, peer: int, shelf: Shelf, header: Header) -> None:
        try:
            arrays = self._transport.fetch(header)
        except SnapshotUnavailable as reason:
            self._counters.unavailable += 1
            log.info("no new teacher from %s: %s", replica_name(peer), reason)
            return
        before = shelf.gate.quarantined
        verdict = shelf.gate.judge(header, arrays)
        self._counters.note_quarantine(before, shelf.gate.quarantined)
        if verdict is Verdict.ACCEPTED:
            if before and not shelf.gate.quarantined:
                log.warning("%s is out of quarantine with version %d", replica_name(peer), header.id.version)
            with self.lock:
                if peer in self.turn.now:  # it may have passed meanwhile
                    shelf.put(header, arrays)
                    shelf.taken_in = self._exchange
            return
        self._counters.rejected += 1
        shelf.refused.add(header.id)
        state = ", which is in quarantine" if shelf.gate.quarantined else ""
        log.warning("version %d of %s%s is refused: %s", header.id.version, replica_name(peer), state, verdict)
        write_row(self._ledger, self.step, header, None, 0, verdict)


def write_nobody(ledger: Recorder, step: int) -> None:
    """That there was nobody to learn from in a step."""
    ledger.add(step, bytes_received=0, verdict=NOBODY)


def write_row(ledger: Recorder, step: int, header: Header, lag: int | None, received: int, verdict: Verdict) -> None:
    """What became of a snapshot in a step, for the ledger."""
    who = header.id
    ledger.add(
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
