"""A replica of an ended run trained again, alone: `python -P -m codistill.replay RUN REPLICA`.

An asynchronous run is not repeatable, since who is heard when depends on the clock. But all else is a function of names
(data, random streams, first weights), the ledger says who taught in each step, and `exchange.keep_snapshots` leaves
what they showed. Trained from these, a replica ends bit for bit where it ended, whatever it went through; or else the
ledger does not tell the truth.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from codistill import records
from codistill.exchange.clock import PublishRule
from codistill.exchange.currency import Currency
from codistill.exchange.mailbox import MailboxLike
from codistill.exchange.opening import Member, Shown
from codistill.exchange.replayed import Heard, NotReplayable, ReplayedMailbox, check_kept, heard_in
from codistill.exchange.transport import connect_files
from codistill.inheritance import parent_of
from codistill.replica import train_replica
from codistill.run_dir import RunDir, StorageError
from codistill.spec import Exchange, JobSpec, replica_name

EXIT_SAME, EXIT_REFUSED, EXIT_UNAVAILABLE, EXIT_DIFFERS = 0, 2, 3, 104


@dataclass(frozen=True)
class Verdict:
    """How the weights of a replay compare with those of the export."""

    tensors: int
    first_difference: str | None
    """The first tensor, in the order of names, that is not the same to the bit, and by how much."""
    losses_same_until: int | None
    """The last step logged in both whose training loss is the same to the bit; None when no step is."""


def replay(run: RunDir, index: int) -> Verdict:
    """Train replica `index` of an ended run again and compare. Writes nothing into `run`.

    Raises `NotReplayable` for a run that cannot be replayed, `StorageError` when it cannot be read.
    """
    spec, name = run.read_spec(), replica_name(index)
    if (problem := why_not(spec, index)) is not None:
        raise NotReplayable(problem)
    if (parent := parent_of(run)) is not None:
        raise NotReplayable(f"the run goes on from {parent}, and only a run from its first step on can be replayed")
    exported = run.export(name) / "model.safetensors"
    if not exported.exists():
        raise NotReplayable(f"{name} has no export to compare with ({exported}); only replicas that ended have one")
    heard = heard_in(records.read(run, name, "ledger"))
    snapshots = check_kept(run, heard)
    steps = sum(1 for ids in heard.values() if ids)
    print(f"{name}: {spec.total_steps} steps, {steps} of them with teachers, from {snapshots} snapshots", flush=True)
    with tempfile.TemporaryDirectory(prefix="codistill-replay-") as directory:
        scratch = RunDir(Path(directory), run.job_id)
        scratch.create(as_replayed(spec))
        scratch.start_attempt(1, time.time())
        _train(scratch, run, heard, index)
        return _verdict(run, scratch, name)


def why_not(spec: JobSpec, index: int) -> str | None:
    """Why a run of this spec cannot be replayed, and what would be right; None when it can."""
    if not spec.exchanges:
        return f"replicas of method '{spec.method.kind}' hear nobody; train it again with the same seed instead"
    if not spec.exchange.keep_snapshots:
        return "the run kept no snapshots; set exchange.keep_snapshots = true and train it again"
    if spec.replicas.ranks > 1:
        return f"each replica had {spec.replicas.ranks} ranks; only replicas.ranks = 1 can be replayed"
    if spec.on_cuda or spec.training.device not in ("auto", "cpu"):
        return "it was trained on a GPU, whose sums are not repeatable; only training.device = 'cpu' can be replayed"
    if not 0 <= index < spec.replicas.count:
        return f"there is no {replica_name(index)}; the run has {spec.replicas.count}, counted from 0"
    return None


def as_replayed(spec: JobSpec) -> JobSpec:
    """The same training, without what is only written down or shown to others."""
    training = spec.training.model_copy(
        update={"trackers": (), "checkpoint_interval_steps": max(spec.training.steps, 1)}
    )
    exchange = spec.exchange.model_copy(update={"keep_snapshots": False})
    return spec.model_copy(update={"training": training, "exchange": exchange, "controls": ()})


def _train(scratch: RunDir, run: RunDir, heard: Heard, index: int) -> None:
    def open_replayed(
        member: Member, exchange: Exchange, currency: Currency[Shown], rule: PublishRule, **_: object
    ) -> MailboxLike[Shown]:
        return ReplayedMailbox(run, heard, rule, member.counters)

    train_replica(scratch, fence=1, index=index, connect=connect_files, open_mailbox=open_replayed)


def _verdict(run: RunDir, scratch: RunDir, name: str) -> Verdict:
    before, now = (load_file(place.export(name) / "model.safetensors") for place in (run, scratch))
    losses = [records.values(records.read(place, name, "metrics"), "train/loss") for place in (run, scratch)]
    was, again = (dict(zip(*one, strict=True)) for one in losses)
    until: int | None = None
    for step in sorted(was.keys() & again.keys()):
        if was[step] != again[step]:
            break
        until = step
    return Verdict(len(before), first_difference(before, now), until)


def first_difference(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> str | None:
    """The first tensor that differs, and how; None when all are the same to the bit."""
    for name in sorted(before.keys() | now.keys()):
        if name not in before or name not in now:
            return f"{name} is only in the {'replay' if name in now else 'export'}"
        old, new = before[name], now[name]
        if (old.dtype, old.shape) != (new.dtype, new.shape):
            return f"{name} is {tuple(old.shape)} of {old.dtype} in the export, {tuple(new.shape)} of {new.dtype} now"
        differs = (_bits(old) != _bits(new)).reshape(old.numel(), -1).any(dim=1)
        if differs.any():
            most = float((old.double() - new.double()).abs().max())
            return f"{name} differs in {int(differs.sum())} of {old.numel()} entries, by {most:.3g} at most"
    return None


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="codistill.replay", description="Train a replica of an ended run again.")
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument("replica", type=int, help="its number")
    given = parser.parse_args(arguments)
    place = given.run.absolute()
    try:
        verdict = replay(RunDir(place.parent, place.name), given.replica)
    except StorageError as error:
        print(f"codistill: {error}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    except ValueError as error:
        print(f"codistill: {error}", file=sys.stderr)
        return EXIT_REFUSED
    name = replica_name(given.replica)
    if verdict.first_difference is None:
        print(f"{name} ends bit for bit as it did: {verdict.tensors} tensors")
        return EXIT_SAME
    print(f"{name} ends otherwise: {verdict.first_difference}")
    until = verdict.losses_same_until
    print(f"the losses are the same {'nowhere' if until is None else f'up to step {until}'}")
    return EXIT_DIFFERS


if __name__ == "__main__":
    sys.exit(main())
