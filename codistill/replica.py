"""One replica from its first step to its export, wherever it runs: resume, train phase by phase, evaluate, write down.

`train_replica` is what a process of its own calls; `replica_turns` is the same as a generator, for replicas that take
turns in one process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from typing import Any, cast

import torch

from codistill.controls import spec_of
from codistill.exchange.opening import OpenMailbox, open_mailbox
from codistill.exchange.snapshot import SnapshotId
from codistill.exchange.transport import Connect
from codistill.numerics import Numerics, device_of, set_up_process
from codistill.ranks import ALONE, Ranks
from codistill.run_dir import RunDir
from codistill.spec import Arm, replica_name
from codistill.telemetry import Beat, Telemetry
from codistill.training import Outside, ReplicaTraining

log = logging.getLogger(__name__)


def train_replica(
    run: RunDir,
    *,
    fence: int,
    index: int,
    arm: Arm = "replica",
    connect: Connect,
    ranks: Ranks = ALONE,
    device: torch.device | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    before_step: Callable[[int], None] = lambda step: None,
    open_mailbox: OpenMailbox = open_mailbox,
) -> dict[str, Any]:
    """Train replica `index` of an arm of the job to its end and return its entry of `result.json`.

    Counts a new incarnation, goes on from the newest good checkpoint, and ends early, after a last checkpoint and with
    outcome "cancelled", once the attempt's stop file appears or `should_stop` says so. `before_step` is called with
    each step's index before it begins. Of several `ranks` each calls this, and the first writes everything down.
    `device` is for whoever deals them out; left out, the spec says. A replica of a control arm neither publishes nor
    hears anybody, and the job's replica of the same index has ended before it starts. `open_mailbox` is for who
    puts something else in the place of the exchange.
    Raises what training raises, and `NobodyHeard`; everything up to the last checkpoint is on disk.
    """
    turns = replica_turns(
        run,
        fence=fence,
        index=index,
        arm=arm,
        connect=connect,
        ranks=ranks,
        device=device,
        should_stop=should_stop,
        before_step=before_step,
        open_mailbox=open_mailbox,
    )
    while True:
        try:
            next(turns)
        except StopIteration as end:
            return cast(dict[str, Any], end.value)


def replica_turns(
    run: RunDir,
    *,
    fence: int,
    index: int,
    arm: Arm = "replica",
    connect: Connect,
    ranks: Ranks = ALONE,
    device: torch.device | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    before_step: Callable[[int], None] = lambda step: None,
    open_mailbox: OpenMailbox = open_mailbox,
) -> Generator[int, None, dict[str, Any]]:
    """`train_replica` as a generator that yields where other replicas of the process may take their turn."""
    spec = run.read_spec()
    name = replica_name(index, arm)
    set_up_process(spec)
    incarnation = int(ranks.from_first(run.next_incarnation(fence, name) if ranks.leads else None))
    telemetry = Telemetry(run, Beat(name, fence, incarnation, spec.total_steps), rank=ranks.rank)
    try:
        outside = Outside(
            connect=connect,
            should_stop=lambda: telemetry.stop_requested() or should_stop(),
            before_step=before_step,
            open_mailbox=open_mailbox,
            ranks=ranks,
            numerics=Numerics(
                device or device_of(spec, index * ranks.count + ranks.rank),
                spec.training.precision,
                spec.training.accumulate,
            ),
        )
        me = SnapshotId(index, fence, incarnation, 0)
        own_spec = spec_of(run, spec.for_replica(index), index, arm)
        return (yield from ReplicaTraining(run, own_spec, me, telemetry, outside, name=name).run_phases())
    except BaseException as failure:
        if not isinstance(failure, GeneratorExit):
            log.error("%s ends at step %d: %s: %s", name, telemetry.beat.step, type(failure).__name__, failure)
        raise
    finally:
        telemetry.close()
