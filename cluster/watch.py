"""The main thread's part of an attempt: stops, deadlines, hangs, and a line now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.decisions import Rung, rung
from cluster.replica_run import ReplicaRun
from codistill.deadlines import overdue
from codistill.outcome import Reason
from codistill.progress import progress_lines
from codistill.run_dir import RunDir
from codistill.spec import JobSpec

log = logging.getLogger("codistill.driver")

WATCH_INTERVAL_S = 0.2
PROGRESS_INTERVAL_S = 3.0


@dataclass
class Watch:
    """Over the replicas of one arm."""

    run: RunDir
    fence: int
    spec: JobSpec
    replicas: Sequence[ReplicaRun]
    attempt_began: float
    """A reading of `time.monotonic`."""
    signals: Sequence[int]
    """Those that this process received; more may come while it watches."""
    hang_after_s: float
    say: Callable[[str], None]
    """Where lines for people go."""

    def __post_init__(self) -> None:
        self._reason: Reason | None = None
        self._stop_since: float | None = None
        self._pressed: Rung = "wait"
        self._started = self._next_line = time.monotonic()
        self._unstarted = {replica.name for replica in self.replicas}

    def until_all_ended(self) -> Reason | None:
        """Start the replicas and return when each has ended or had to be left behind; the reason when the attempt as
        a whole gave up."""
        self._look_for_reasons_to_stop(self._started)  # asked for while the arm before ended: then nothing is started
        for replica in self.replicas:
            replica.start()
        while self._running() and self._pressed != "leave":
            now = time.monotonic()
            beats = self.run.read_heartbeats(self.fence)
            self._unstarted -= {name for name, beat in beats.items() if beat["first_step_at"] is not None}
            self._unstarted -= {replica.name for replica in self.replicas if replica.outcome is not None}
            self._end_hanging(beats, now)
            self._look_for_reasons_to_stop(now)
            if self._stop_since is not None:
                self._press(rung(now - self._stop_since, hurried=len(self.signals) > 1))
            self._show(now)
            time.sleep(WATCH_INTERVAL_S)
        self._show(float("inf"))
        return self._reason

    def _running(self) -> list[ReplicaRun]:
        return [replica for replica in self.replicas if replica.outcome is None]

    def _look_for_reasons_to_stop(self, now: float) -> None:
        if self._stop_since is not None:
            return
        if self.signals:
            self._say(f"signal {self.signals[0]}: each replica writes a last checkpoint and ends")
            self.run.request_stop(self.fence)
        else:
            self._reason = overdue(self.spec, now - self.attempt_began, ()) or overdue(
                self.spec, now - self._started, self._unstarted
            )
            if self._reason is not None:
                self._say(f"stopping: {self._reason.message}")
                self.run.request_stop(self.fence)
        if self.run.stop_requested(self.fence):
            self._stop_since = now
            log.info("a stop was asked for")
            for replica in self.replicas:
                replica.stop()
                if replica.life.beat_time is None:  # still starting, or waiting for room: it has nothing to save
                    replica.handles.kill()

    def _press(self, to: Rung) -> None:
        if to == self._pressed:
            return
        self._pressed = to
        for replica in self._running():
            log.warning("%s still runs after a stop was asked for: %s", replica.name, to)
            match to:
                case "abort":
                    replica.handles.abort()
                case "kill":
                    replica.handles.kill()
                case _:
                    pass

    def _end_hanging(self, beats: dict[str, dict[str, Any]], now: float) -> None:
        for replica in self._running():
            beat = beats.get(replica.name)
            replica.life.observe(beat, now)
            if beat is not None:
                replica.handles.keep(beat["incarnation"])
            if replica.life.hangs(now, limit_s=self.hang_after_s):
                replica.life.changed_at = now  # once is enough, until it beats again
                self._say(f"{replica.name}: no sign of life for {self.hang_after_s:g} s; it is started again")
                replica.handles.kill_workers()

    def _show(self, now: float) -> None:
        if now >= self._next_line:
            self._next_line = now + PROGRESS_INTERVAL_S
            for line in progress_lines(self.run, self.fence):
                self.say(line)

    def _say(self, line: str) -> None:
        log.warning(line)
        self.say(line)
