"""One replica as processes of this machine, one for each of its ranks: started, watched and ended together."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from codistill import local_rank
from codistill.local_rank import Rank
from codistill.run_dir import RunDir
from codistill.spec import Arm, replica_name

LOST = 255
"""multiprocessing's exit code of a process whose fork server has died: the process itself may live on."""


class ReplicaProcesses:
    """The processes of one start of a replica."""

    def __init__(self, run: RunDir, fence: int, index: int, *, ranks: int, start: int, arm: Arm = "replica") -> None:
        """Starts them; `start` counts the starts of this replica in this attempt, from 0."""
        name = replica_name(index, arm)
        self._logs = run.logs(fence, name)
        self._start = start
        self._logs.mkdir(parents=True, exist_ok=True)
        self._rendezvous = run.replica(fence, name) / f"rendezvous-{start}"
        self._processes = [
            local_rank.start(
                Rank(
                    storage=run.storage,
                    job_id=run.job_id,
                    fence=fence,
                    index=index,
                    arm=arm,
                    rank=rank,
                    rendezvous=self._rendezvous if ranks > 1 else None,
                    output=self._output(rank),
                    environment=dict(os.environ),
                )
            )
            for rank in range(ranks)
        ]

    def poll(self) -> int | None:
        """None while it runs; 0 when all ranks have ended well; else the exit code of one that did not, the others
        being ended too, since they would wait for it."""
        codes = [process.exitcode for process in self._processes]
        failed = [code for code in codes if code]
        if failed:
            self.kill()
            return min(failed)  # a rank that was killed is the cause, those that lost it the consequence
        if None in codes:
            return None
        self._close()
        return 0

    def kill(self) -> None:
        for process in self._processes:
            if process.exitcode == LOST and process.pid is not None:
                with suppress(ProcessLookupError):  # the group is the process's own, so that no other is hit
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
        self._close()

    def last_words(self, code: int) -> str:
        """Why it ended with `code`, in one sentence."""
        if code < 0:
            return f"killed by signal {signal.Signals(-code).name}"
        ended = [self._output(rank) for rank, process in enumerate(self._processes) if process.exitcode == code]
        if (words := first_words(ended)) is not None:
            return words
        return "lost: the process that it was forked from has ended" if code == LOST else f"ended with exit code {code}"

    def _output(self, rank: int) -> Path:
        return self._logs / (f"{self._start:04d}.stderr" if rank == 0 else f"{self._start:04d}-rank-{rank}.stderr")

    def _close(self) -> None:
        self._rendezvous.unlink(missing_ok=True)


def first_words(outputs: Iterable[Path]) -> str | None:
    """What ranks that ended with an error say of it, by what they printed; None when that is nothing. Heard is the
    rank that fell silent first: the others may only have lost it."""
    said = sorted((path.stat().st_mtime_ns, path) for path in outputs if path.exists())
    return next((words for _, path in said if (words := error_in(path.read_text(errors="replace")))), None)


def error_in(text: str) -> str:
    """The error that a process ended with, as its output tells it: of the last traceback the first line of the error's
    message, without the module that it is from; where there is none, the last line; empty when there is no line."""
    lines = text.strip().splitlines()
    begin = max((number for number, line in enumerate(lines) if "Traceback (most recent" in line), default=len(lines))
    # Frames are indented; a message of several lines ends with advice, as those of CUDA do.
    errors = (line for line in lines[begin + 1 :] if re.match(r"[A-Za-z_][\w.]*(: |$)", line))
    return re.sub(r"^[\w.]+\.(?=\w+: )", "", next(errors, lines[-1] if lines else ""))
