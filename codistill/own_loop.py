"""Co-distillation in a training loop of one's own: `codistill.join`.

    with codistill.join(model, "/shared/my-run", replica=0, replicas=2, burn_in_steps=400) as peers:
        for step, batch in enumerate(batches):
            logits = model(batch[0])
            loss = criterion(logits, batch[1]) + peers.loss(batch, logits, step)
            ...  # backward, optimizer
            peers.after_step(step)

Every replica runs the same program with a number of its own, under torchrun, Slurm, Ray Train or by hand; what they
share is a directory. `docs/examples/` has whole programs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from codistill.batch import as_outputs
from codistill.exchange.clock import PublishRule
from codistill.exchange.opening import Member, open_mailbox
from codistill.exchange.snapshot import SnapshotId
from codistill.exchange.terms import Counters
from codistill.exchange.transport import Connect, connect_files
from codistill.exchange.weights import OfWeights
from codistill.peers import PeerTeachers, Pull
from codistill.ranks import Ranks
from codistill.records import LEDGER, Recorder
from codistill.run_dir import RunDir, read_json, write_json
from codistill.spec import AutoTopology, Divergence, Exchange, Topology, TravelPrecision, misfit, replica_name

FENCE = 1
EVERYONE = AutoTopology()
CHECKPOINT_INTERVAL_STEPS = 1000
"""How far back a replica of a loop that is not ours may resume in lockstep, as far as we keep snapshots for it."""


class JoinedPeers(PeerTeachers):
    """`PeerTeachers` that leave the exchange at the end of a `with` block."""

    def __enter__(self) -> JoinedPeers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(self.steps_done if kind is None else None)


def join(
    model: nn.Module,
    run: str | Path,
    *,
    replica: int,
    replicas: int,
    burn_in_steps: int,
    interval_steps: int = 50,
    weight: float = 1.0,
    temperature: float = 1.0,
    divergence: Divergence = "cross_entropy",
    topology: Topology = EVERYONE,
    mode: Literal["async", "lockstep"] = "async",
    precision: TravelPrecision = "fp32",
    max_lag_steps: int | None = None,
    max_offset_steps: int | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    build: Callable[[], nn.Module] | None = None,
    connect: Connect | None = None,
    ranks: Ranks | None = None,
    step: int = 0,
    start_together_s: float = 30.0,
    timeout_s: float = 120.0,
) -> JoinedPeers:
    """Make this process one of `replicas` that teach each other; returns its peers.

    `model` is what is trained (a `DistributedDataParallel` around it is seen through); all replicas have the same
    architecture. `run` is a directory that all share, one for each run, named like an id (lower-case letters, digits,
    hyphens). Before step `burn_in_steps` nobody is heard; then the weights are published every `interval_steps`.
    `precision` is that in which parameters travel ("fp32": as they are); a peer is not heard while its snapshot is more
    than `max_lag_steps` behind its own step, or more than `max_offset_steps` behind this replica's.
    `step` says how many steps are done already, when training goes on from a checkpoint.

    Teachers are shown each batch by `forward(module, batch)`, which answers logits, or taps with `logits` among them;
    left out, a mapping is passed on as keyword arguments, of a tuple or list the first item is shown. They are built by
    `build`; left out, by copying `model`. `connect` brings another transport than files in `run`.

    With torch's process group initialised, its processes are the ranks of this one replica, and each calls this; where
    they are replicas instead, say so with `ranks=codistill.ranks.ALONE`.

    Raises `ValueError` for a number out of range, a topology that does not fit, a temperature that the divergence does
    not have, or when `run` holds a run that has ended; `PeerTimeout` in lockstep.
    """
    if not 0 <= replica < replicas:
        raise ValueError(f"replica is {replica} of {replicas}; it counts from 0 to {replicas - 1}")
    if (problem := misfit(topology, replicas)) is not None:
        raise ValueError(problem)
    pull = Pull(weight, temperature, divergence)
    place = Path(run).absolute()
    directory, name = RunDir(place.parent, place.name), replica_name(replica)
    ranks = Ranks.joined() if ranks is None else ranks
    ended = read_json(_end_of(directory, name))
    if ended is not None and step == 0:
        raise ValueError(f"{place} holds a run in which {name} ended after {ended} steps; name a directory of its own")
    incarnation = ranks.from_first(directory.next_incarnation(FENCE, name) if ranks.leads else None)
    records = directory.replica(FENCE, name) / "ledger" if ranks.leads else None
    member = Member(
        run=directory,
        me=SnapshotId(replica, FENCE, incarnation, 0),
        replicas=replicas,
        ranks=ranks,
        connect=connect or connect_files,
        ledger=Recorder(records, LEDGER, fence=FENCE, incarnation=incarnation),
        counters=Counters(),
        should_stop=lambda: False,
    )

    def left(finished_at: int | None) -> None:
        member.ledger.flush()
        if finished_at is not None and ranks.leads:
            write_json(_end_of(directory, name), finished_at)

    bare = model.module if isinstance(model, DistributedDataParallel) else model
    mailbox = open_mailbox(
        member,
        Exchange(
            topology=topology,
            mode=mode,
            precision=precision,
            max_lag_steps=max_lag_steps,
            max_offset_steps=max_offset_steps,
        ),
        OfWeights(bare, precision),
        PublishRule(burn_in_steps, interval_steps),
        checkpoint_interval_steps=CHECKPOINT_INTERVAL_STEPS,
        timeout_s=timeout_s,
    )
    peers = JoinedPeers(
        mailbox,
        bare,
        lambda peer: copy.deepcopy(bare) if build is None else build(),
        lambda module, batch: as_outputs((forward or show)(module, batch)),
        start_together_s=start_together_s,
        pull=pull,
        on_close=left,
    )
    peers.begin(step)
    return peers


def show(module: nn.Module, batch: Any) -> Any:
    """What `module` says of `batch`: a mapping gives keyword arguments, a tuple or list shows its first item."""
    match batch:
        case Mapping():
            return module(**cast(Mapping[str, Any], batch))
        case tuple() | list():
            return module(batch[0])
        case _:
            return module(batch)


def _end_of(directory: RunDir, name: str) -> Path:
    return directory.replica(FENCE, name) / "ended.json"
