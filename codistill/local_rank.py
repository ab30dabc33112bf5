"""One rank of a replica in a process of this machine, forked from one that has imported the library before.

To import torch and this library takes seconds of a processor; a fork of a process that has done so takes milliseconds.
So the fork server imports them once for all ranks of all replicas, for those of control arms and for those that start
again. It never trains, so that every rank begins as a fresh process would.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from codistill.run_dir import RunDir, write_json
from codistill.spec import Arm, replica_name

PRELOADED = ("codistill.replica",)
"""What the fork server imports. It does not ask for a GPU: once a process has, no fork of it could use one."""
PRELOADED_FOR_RANKS = (*PRELOADED, "torch._dynamo")
"""Where ranks average their gradients, by what imports torch's compiler; one rank alone does without it."""

GROUP_SIGNALS = {signal.SIGTERM, signal.SIGHUP}
"""What reaches a whole process group: from `timeout`, from whoever stops a shell's job, from a terminal that closes."""


@dataclass(frozen=True)
class Rank:
    """Which rank of which replica a process is, and what it is given."""

    storage: Path
    job_id: str
    fence: int
    index: int
    arm: Arm
    rank: int
    rendezvous: Path | None
    """Where the ranks of a replica meet; None for a replica of one rank."""
    output: Path
    """The file that takes what the process prints."""
    environment: Mapping[str, str]


def start(rank: Rank) -> ForkServerProcess:
    """The process that trains as `rank`, begun. Raises `OSError` where none can be made."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED if rank.rendezvous is None else PRELOADED_FOR_RANKS))
    process = context.Process(target=_train, args=(rank,), name=replica_name(rank.index, rank.arm))
    resource_tracker.ensure_running()  # to start it would unblock SIGTERM
    # What ends a whole process group asks the replicas for a last checkpoint, through their supervisor. The fork
    # server, which this may start, must not end before them.
    with _blocked():
        process.start()
    return process


def _train(rank: Rank) -> None:
    _become(rank)
    from codistill.exchange.transport import connect_files
    from codistill.ranks import ALONE, Ranks, join_group
    from codistill.replica import train_replica

    run = RunDir(rank.storage, rank.job_id)
    spec = run.read_spec()
    ranks: Ranks = ALONE
    if rank.rendezvous is not None:
        ranks = join_group(f"file://{rank.rendezvous}", rank.rank, spec.replicas.ranks, on_gpu=spec.on_cuda)
    entry = train_replica(
        run,
        fence=rank.fence,
        index=rank.index,
        arm=rank.arm,
        connect=connect_files,
        ranks=ranks,
        should_stop=_orphaned().is_set,
    )
    if ranks.leads:
        write_json(run.replica(rank.fence, replica_name(rank.index, rank.arm)) / "result.json", entry)


def _become(rank: Rank) -> None:
    """A process as one that was started and not forked, with its own name and output."""
    os.setsid()  # Ctrl-C is not for it: it is asked to stop, and writes its last checkpoint
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
    os.environ.clear()
    os.environ.update(rank.environment)
    output = os.open(rank.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    name = replica_name(rank.index, rank.arm) + (f":{rank.rank}" if rank.rendezvous else "")
    if (shown := Path("/proc/self/comm")).exists():
        shown.write_text(name)  # what `top` and `ps -e` show


def _orphaned() -> threading.Event:
    """Set once the supervisor has died."""
    orphaned = threading.Event()
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None

    def wait() -> None:
        supervisor.join()
        orphaned.set()

    threading.Thread(target=wait, name="orphan-watch", daemon=True).start()
    return orphaned


@contextmanager
def _blocked() -> Generator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
