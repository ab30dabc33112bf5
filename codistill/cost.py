"""What a phase takes, found out by a step of it on torch's meta device, whose tensors have shapes but no memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from codistill.batch import Batch, Outputs, as_outputs
from codistill.cached_teachers import Cached
from codistill.companion import Opening
from codistill.data.home import DataError
from codistill.phase import Artifacts, Learner, Phase, Step
from codistill.teachers import Frozen, PeerPredictions, Peers
from codistill.work import OpenGroup, PhaseInProgress

META = torch.device("meta")


@dataclass(frozen=True)
class PhaseCost:
    """Of one rank; bytes and floating-point operations of one step on one micro-batch."""

    steps: int
    parameters: int
    """Trained in the phase; all that it holds is in `weights_bytes`, buffers included."""
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    teachers_bytes: int
    """Of teachers beside the learner and the learners before: one module each."""
    activations_bytes: int
    """Kept for the backward pass of the update that keeps most."""
    flops: int
    """Of all updates, forward and backward, multiplications and additions counted apart."""
    teachers_flops: int


def cost_of(
    phase: Phase, finished: Mapping[str, Learner], batch: Batch, peers: int, of_peers: Sequence[Phase] = ()
) -> tuple[PhaseCost, Learner]:
    """What the phase takes with `peers` stale peers heard, and its learner, on the meta device as those in `finished`.

    `batch` is a micro-batch of the shapes that one rank is shown. A teacher that is exported somewhere is taken to be
    as large as the student, and so is each peer, unless `of_peers` says what that goes through.
    """
    learner = _learner(phase, finished)
    others = [_learner(other, finished) for other in of_peers] or [learner] * peers
    work = PhaseInProgress.begin(phase, learner)
    sources = [source for source in phase.teachers if not isinstance(source, Cached)]
    teachers = {source.name: _modules(source, learner, finished, others) for source in sources}
    batch = batch.to(META)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        targets = {name: [_said(module, batch) for module in modules] for name, modules in teachers.items()}
    teachers_flops = int(counter.get_total_flops())
    for source in phase.teachers:
        if isinstance(source, PeerPredictions):
            targets[source.name] = [_stored(next(iter(learner.values())), batch)] * peers
        if isinstance(source, Cached):  # asked before the first step alone
            with torch.no_grad():
                targets[source.name] = [_said(m, batch) for m in _modules(source.of, learner, finished, others)]
    counter = FlopCounterMode(display=False)
    with counter:
        kept = [_activations(phase, number, work, batch, targets) for number in range(len(phase.updates))]
    groups = work.groups.values()
    trained = {id(p): p for group in groups for p in group.parameters.values()}.values()
    stay = {id(module) for earlier in finished.values() for module in earlier.modules()}
    beside = [module for several in teachers.values() for module in several if id(module) not in stay]
    cost = PhaseCost(
        steps=phase.steps,
        parameters=sum(p.numel() for p in trained),
        weights_bytes=_bytes([*learner.parameters(), *learner.buffers()]),
        gradients_bytes=_bytes(trained),
        optimizer_bytes=sum(_state_bytes(group) for group in groups),
        teachers_bytes=sum(_bytes([*module.parameters(), *module.buffers()]) for module in beside),
        activations_bytes=max(kept),
        flops=int(counter.get_total_flops()),
        teachers_flops=teachers_flops,
    )
    return cost, learner


def _learner(phase: Phase, finished: Mapping[str, Learner]) -> Learner:
    with META:
        learner = phase.learner(Artifacts(finished))
    return learner.to(META).train()  # moved: some is put elsewhere by name


def _modules(
    source: Any, learner: Learner, finished: Mapping[str, Learner], others: Sequence[Learner]
) -> Sequence[nn.Module]:
    match source:
        case Peers():
            return [other[source.part] for other in others]
        case Frozen():
            return [_built(source, build, learner, finished) for build in source.models]
        case _:
            return []  # answers without a module


def _built(
    source: Frozen, build: Callable[[Opening], nn.Module], learner: Learner, finished: Mapping[str, Learner]
) -> nn.Module:
    try:
        return build(_opening(learner, finished))
    except DataError:  # a model that is not there yet, or not here
        if source.stand_in is None:
            return next(iter(learner.values()))
        with META:
            return source.stand_in().to(META)


def _opening(learner: Learner, finished: Mapping[str, Learner]) -> Opening:
    def refuse(*_: object) -> Any:
        raise AssertionError("a frozen teacher exchanges nothing")

    return Opening(
        learner=learner,
        finished=finished,
        build_part=refuse,
        place=lambda module: module,
        open_mailbox=refuse,
        open_predictions=refuse,
        storage=Path("/nowhere"),
    )


def _stored(module: nn.Module, batch: Batch) -> Outputs:
    """What stored predictions of models like `module` look like."""
    with torch.no_grad():
        logits = _said(module, batch)["logits"]
    every = torch.ones(len(batch), dtype=torch.bool, device=META)
    return {"logits": logits, "found": every, "age_steps": every.long()}


def _said(module: nn.Module, batch: Batch) -> Outputs:
    return as_outputs(module(batch.views["x"]))


def _activations(
    phase: Phase, number: int, work: PhaseInProgress, batch: Batch, targets: Mapping[str, Sequence[Outputs]]
) -> int:
    """Go forward and back through an update; the bytes that autograd kept in between."""
    learner = work.learner
    owned = {_storage(tensor) for tensor in [*learner.parameters(), *learner.buffers()]}
    with _kept(owned) as kept:
        step = Step(phase.steps - 1, batch, learner, dict(learner.items()), targets, work.state)
        value = phase.updates[number].loss(step).value
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    if value.requires_grad:  # else the update is off, of a replica that hears nobody
        value.backward()
    work.clear_gradients()
    return found


@contextmanager
def _kept(owned: set[int]) -> Generator[dict[int, Tensor]]:
    # By storage, since several views of one are often kept, and alive, since a storage may take another's place.
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in owned:
            kept.setdefault(_storage(tensor), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def _state_bytes(group: OpenGroup) -> int:
    return (2 if isinstance(group.optimizer, torch.optim.AdamW) else 1) * _bytes(group.parameters.values())


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # pyright: ignore[reportPrivateUsage] - the only name a storage has


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
