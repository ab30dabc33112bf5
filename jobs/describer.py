"""Facts about a spec, from a process that has torch: `codistill.describe --serve`, kept warm beside the service.

A request waits `LIMIT_S` at most; what comes later is kept for the next who asks. A spec that takes longer than
`PATIENCE_S` costs that process its life.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from codistill.price import size_key
from codistill.spec import JobSpec

LIMIT_S = 2.0
"""That a request waits for facts."""
PATIENCE_S = 20.0
"""On a busy machine a large model takes some seconds."""
REMEMBERED = 512
"""Specs whose facts are kept."""
REST_S = 30.0
"""Before a process that ended by itself is started again: without torch it ends at once, every time."""
COMMAND = ("nice", sys.executable, "-P", "-m", "codistill.describe", "--serve")

Facts = Mapping[str, Any]


class Describer:
    """Answers from any thread, one spec at a time."""

    def __init__(
        self, environment: Mapping[str, str], *, command: tuple[str, ...] = COMMAND, patience_s: float = PATIENCE_S
    ) -> None:
        self._environment, self._command = {**os.environ, "OMP_NUM_THREADS": "1", **environment}, command
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._patience_s = patience_s
        self._owes: tuple[str, float] | None = None
        """Of which spec the process has still to answer, and since when."""
        self._rests_until = 0.0
        self._remembered: OrderedDict[str, Facts] = OrderedDict()

    def warm_up(self) -> None:
        """Start the process now, so that the first who asks need not wait for it."""
        with self._lock:
            self._child = self._child or _Child(self._command, self._environment)

    def close(self) -> None:
        with self._lock:
            self._end_child()

    def facts(self, spec: JobSpec, limit_s: float = LIMIT_S) -> Facts | str:
        """What `codistill.describe` says of it; or in one sentence why nothing is known, after `limit_s` at most."""
        key, give_up = size_key(spec), time.monotonic() + limit_s
        if (known := self._remembered.get(key)) is not None:
            return known
        if not self._lock.acquire(timeout=limit_s):
            return "others asked at the same moment; ask again"
        try:
            return self._ask(key, spec.model_dump_json(), give_up)
        finally:
            self._lock.release()

    def _ask(self, key: str, line: str, give_up: float) -> Facts | str:
        if self._child is None and time.monotonic() < self._rests_until:
            return "the process that finds them out ended by itself; is torch installed where the service runs?"
        child = self._child = self._child or _Child(self._command, self._environment)
        try:
            if not child.ready_by(give_up):
                return "the process that finds them out is still starting; ask again in some seconds"
            if self._owes is not None:
                self._take(child, give_up)
            if (known := self._remembered.get(key)) is not None:
                return known
            child.send(line)
            self._owes = key, time.monotonic()
            return self._take(child, give_up)
        except TimeoutError:
            if self._owes is not None and time.monotonic() - self._owes[1] > self._patience_s:
                self._end_child()
            return "finding them out takes a while; ask again, or codistill validate --facts, which waits"
        except EOFError:
            self._end_child()
            self._rests_until = time.monotonic() + REST_S
            return "the process that finds them out ended by itself; is torch installed where the service runs?"

    def _take(self, child: _Child, give_up: float) -> Facts | str:
        """What is owed; facts are kept."""
        assert self._owes is not None
        answer, (key, _) = json.loads(child.next(give_up)), self._owes
        self._owes = None
        if "facts" not in answer:
            return str(answer.get("unknown"))
        self._remembered[key] = answer["facts"]
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return answer["facts"]

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.kill()
        self._child = self._owes = None


class _Child:
    """The process, and a thread that reads what it says. It ends when its standard input does: with us."""

    def __init__(self, command: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._ready = False
        self._said: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, name="describer", daemon=True).start()

    def ready_by(self, give_up: float) -> bool:
        """Whether it answers by then. Raises `EOFError` when it has ended."""
        if not self._ready:
            try:
                self._ready = bool(self.next(give_up))
            except TimeoutError:
                return False
        return True

    def send(self, line: str) -> None:
        """Raises `EOFError` when it has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError:
            raise EOFError from None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # of a line that it has not read
                self._process.stdin.close()

    def next(self, give_up: float) -> str:
        """What it says next. Raises `TimeoutError`, or `EOFError` when it has ended."""
        try:
            line = self._said.get(timeout=max(0.0, give_up - time.monotonic()))
        except queue.Empty:
            raise TimeoutError from None
        if line is None:
            raise EOFError
        return line

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as said:
            for line in said:
                self._said.put(line)
        self._said.put(None)
