"""One replica as processes of this machine, one for each of its ranks: started, watched and ended together."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from codistill.run_dir import RunDir
from codistill.spec import Arm, replica_name


class ReplicaProcesses:
    """The processes of one start of a replica."""

    def __init__(self, run: RunDir, fence: int, index: int, *, ranks: int, start: int, arm: Arm = "replica") -> None:
        """Starts them; `start` counts the starts of this replica in this attempt, from 0."""
        name = replica_name(index, arm)
        self._logs = run.logs(fence, name)
        self._start = start
        self._logs.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-P", "-m", "codistill.local", "--storage", str(run.storage), "--job", run.job_id]
        command += ["--replica", str(index), "--arm", arm, "--fence", str(fence)]
        self._rendezvous = run.replica(fence, name) / f"rendezvous-{start}"
        self._processes: list[subprocess.Popen[str]] = []
        for rank in range(ranks):
            own = ["--rank", str(rank), "--rendezvous", str(self._rendezvous)] if ranks > 1 else []
            # The pipe to its standard input is how a process learns that this one died: it then reads the end of file.
            # A session of its own keeps Ctrl-C from it, so that it can write its last checkpoint.
            with self._errors(rank).open("w") as errors:
                self._processes.append(
                    subprocess.Popen(
                        command + own, stdin=subprocess.PIPE, stdout=errors, stderr=errors, text=True,
                        start_new_session=True,
                    )
                )  # fmt: skip

    @property
    def pids(self) -> list[int]:
        """Process ids, by rank."""
        return [process.pid for process in self._processes]

    def poll(self) -> int | None:
        """None while it runs; 0 when all ranks have ended well; else the exit code of one that did not, the others
        being ended too, since they would wait for it."""
        codes = [process.poll() for process in self._processes]
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
            if process.poll() is None:
                process.kill()
                process.wait()
        self._close()

    def last_words(self, code: int) -> str:
        """Why it ended with `code`, in one sentence."""
        if code < 0:
            return f"killed by signal {signal.Signals(-code).name}"
        for rank, process in enumerate(self._processes):
            lines = _read_lines(self._errors(rank)) if process.returncode == code else []
            if lines:  # of a traceback, its last line, without the module that the error is from
                return re.sub(r"^[\w.]+\.(?=\w+: )", "", lines[-1])
        return f"ended with exit code {code}"

    def _errors(self, rank: int) -> Path:
        return self._logs / (f"{self._start:04d}.stderr" if rank == 0 else f"{self._start:04d}-rank-{rank}.stderr")

    def _close(self) -> None:
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        self._rendezvous.unlink(missing_ok=True)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().strip().splitlines()
    except OSError:
        return []
