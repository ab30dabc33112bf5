"""What a replica tells while it trains: a heartbeat file for whoever watches, a log file, and ears for a stop."""

from __future__ import annotations

import logging
import math
import os
import platform
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from codistill.progress import steps_per_s
from codistill.run_dir import RunDir, StorageError, write_json

log = logging.getLogger(__name__)

INTERVAL_S = 0.5


@dataclass
class Beat:
    """The heartbeat's content; see `docs/design.md`."""

    replica: str
    fence: int
    incarnation: int
    steps: int
    step: int = 0
    first_step: int = 0
    """Updates completed when this incarnation began to train."""
    state: str = "starting"
    phase: str = ""
    loss: float | None = None
    metrics: dict[str, float | None] = field(default_factory=dict[str, float | None])
    teachers: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    bytes_sent: int = 0
    bytes_received: int = 0
    pid: int = field(default_factory=os.getpid)
    node: str = field(default_factory=platform.node)
    started_at: float = field(default_factory=time.time)
    first_step_at: float | None = None
    last_step_at: float | None = None
    time: float = 0.0


class Telemetry:
    """Writes `beat` every half second from a thread of its own, and looks whether the attempt is to stop,
    because somebody asked for it or because a newer one has begun. Of several ranks, the first alone writes `beat`."""

    def __init__(self, run: RunDir, beat: Beat, *, rank: int = 0) -> None:
        self._run, self.beat, self._rank = run, beat, rank
        self._stop = threading.Event()
        self._closing = threading.Event()
        self._handler = _log_to(run, beat, rank)
        self._thread = threading.Thread(target=self._work, name="heartbeat", daemon=True)
        self._write()
        self._thread.start()

    def stop_requested(self) -> bool:
        return self._stop.is_set()

    def stepped(self, step: int) -> None:
        """Note that `step` updates are complete."""
        now = time.time()
        self.beat.step = step
        self.beat.last_step_at = now
        if self.beat.first_step_at is None:
            self.beat.first_step_at = now
            self.beat.state = "training"
            self._write()

    def step_s(self) -> float | None:
        """Mean seconds per step of this incarnation; None before it has made two."""
        speed = steps_per_s(asdict(self.beat))
        return None if speed is None else round(1 / speed, 6)

    def measured(self, values: dict[str, float]) -> None:
        """Show the newest value of each metric."""
        newest = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.beat.metrics = self.beat.metrics | newest  # a new one: the thread may be walking over the old
        self.beat.loss = self.beat.metrics.get("train/loss")

    def close(self, state: str = "ended") -> None:
        self.beat.state = state
        self._closing.set()
        self._thread.join(timeout=10)
        self._write()
        logging.getLogger("codistill").removeHandler(self._handler)
        self._handler.close()

    def _work(self) -> None:
        while not self._closing.wait(INTERVAL_S):
            for task in (self._listen, self._write):
                try:
                    task()
                except Exception as error:  # a file system that fails for a while must not make the replica look dead
                    log.warning("the heartbeat goes on after %s: %s", type(error).__name__, error)

    def _listen(self) -> None:
        if self._run.stop_requested(self.beat.fence) or self._run.superseded(self.beat.fence):
            self._stop.set()

    def _write(self) -> None:
        if self._rank > 0:
            return
        self.beat.time = time.time()
        try:
            write_json(self._run.heartbeat(self.beat.fence, self.beat.replica), asdict(self.beat), durable=False)
        except StorageError as error:  # a full disk must not end training; the checkpoint will say so if it lasts
            log.warning("no heartbeat: %s", error)


def _log_to(run: RunDir, beat: Beat, rank: int) -> logging.Handler:
    directory = run.logs(beat.fence, beat.replica)
    directory.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(directory / f"{beat.incarnation:04d}{f'-rank-{rank}' if rank else ''}.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("codistill")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler


def note_failed(run: RunDir, fence: int, replica: str, steps: int) -> None:
    """Say in the heartbeat of a replica that is not started again, on behalf of its process, that nothing follows: so
    nobody waits for its first step, or misses it."""
    found = run.read_heartbeats(fence).get(replica)
    beat = found or asdict(Beat(replica, fence, incarnation=0, steps=steps, pid=0, time=time.time()))
    try:
        write_json(run.heartbeat(fence, replica), beat | {"state": "failed"}, durable=False)
    except StorageError as error:
        log.warning("no heartbeat: %s", error)
