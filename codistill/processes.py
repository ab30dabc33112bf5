"""One replica as processes of this machine, one for each of its ranks: started, watched and ended together."""

from __future__ import annotations

import os
import re
import signal
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
        for rank, process in enumerate(self._processes):
            lines = _read_lines(self._output(rank)) if process.exitcode == code else []
            if lines:  # of a traceback, its last line, without the module that the error is from
                return re.sub(r"^[\w.]+\.(?=\w+: )", "", lines[-1])
        return "lost: the process that it was forked from has ended" if code == LOST else f"ended with exit code {code}"

    def _output(self, rank: int) -> Path:
        return self._logs / (f"{self._start:04d}.stderr" if rank == 0 else f"{self._start:04d}-rank-{rank}.stderr")

    def _close(self) -> None:
        self._rendezvous.unlink(missing_ok=True)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().strip().splitlines()
    except OSError:
        return []
