"""The manager's threads: one keeps the lease, one does the rounds while it is held."""

from __future__ import annotations

import logging
import threading
import time
import uuid

from jobs.errors import StoreError
from jobs.manager import Manager
from jobs.store import Store

log = logging.getLogger("codistill.manager")

LEASE_S = 5.0
TICK_S = 0.25
NOTE_INTERVAL_S = 5.0
"""Between two notes in the store of a round that was done: each is a write to the disk."""


class ManagerLoop:
    """Runs a manager until it is closed. Of several loops on one store, one works at a time."""

    def __init__(self, store: Store, manager: Manager) -> None:
        self._store, self._manager = store, manager
        self._owner = uuid.uuid4().hex
        self._lease: int | None = None
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=target.__name__, daemon=True)
            for target in (self._keep_lease, self._do_rounds)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End both threads and let the next manager start at once."""
        self._closed.set()
        for thread in self._threads:
            thread.join(timeout=LEASE_S)
        try:
            self._store.lease.release(self._owner)
        except StoreError as error:
            log.warning("%s; the lease runs out by itself", error)

    def check(self) -> None:
        """Raise `RuntimeError` when a thread has died: then this process is to be replaced."""
        if not self._closed.is_set() and not all(thread.is_alive() for thread in self._threads):
            raise RuntimeError("a thread of the manager has died")

    def _keep_lease(self) -> None:
        while not self._closed.is_set():
            try:
                self._lease = self._store.lease.acquire(self._owner, LEASE_S)
            except StoreError as error:
                self._lease = None
                log.error("%s", error)
            self._closed.wait(LEASE_S / 5)

    def _do_rounds(self) -> None:
        note_at = 0.0
        while not self._closed.wait(TICK_S):
            lease = self._lease
            if lease is None:
                continue
            try:
                self._manager.tick(lease)
                if time.monotonic() >= note_at:
                    self._store.lease.note_round(lease)
                    note_at = time.monotonic() + NOTE_INTERVAL_S
            except StoreError as error:
                log.error("%s; trying again", error)
