"""The training loop: one phase, from top to bottom. It knows no method by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codistill.batch import Batch, Outputs
from codistill.companion import Teacher
from codistill.exchange.terms import StopRequested
from codistill.losses import IGNORED
from codistill.numerics import Numerics, gradients_stay_here, wrap
from codistill.phase import Phase, Step
from codistill.randomness import Name, seed_everything
from codistill.ranks import Ranks
from codistill.work import OpenGroup, PhaseInProgress

Targets = Mapping[str, Sequence[Outputs]]


WHAT_TO_DO = "lower the learning rate or set training.clip_norm"


class TrainingDiverged(RuntimeError):
    """The loss of a step, or what it left, is not a finite number."""


@dataclass(frozen=True)
class Surroundings:
    """What the loop is given from outside."""

    numerics: Numerics
    ranks: Ranks
    stream: tuple[Name, ...]
    """Names of this replica's random stream in this phase."""
    should_stop: Callable[[], bool]
    before_step: Callable[[int], None]
    after_step: Callable[[int, Mapping[str, Tensor]], None]
    """Called with the number of completed updates and the statistics of the last one on this rank."""
    gradients_sent: Callable[[int], None] = lambda num_bytes: None
    """Called with the bytes that all ranks together have just sent to average gradients."""


def train_phase(
    phase: Phase,
    work: PhaseInProgress,
    batches: Iterator[Batch],
    around: Surroundings,
) -> Generator[int]:
    """Train from `work.step` to the end of the phase; `batches` begins with that step's.

    Yields where replicas of one process let each other take their turn, after training and after publishing: all train,
    then all publish, then all read.
    Raises `StopRequested` between steps, `TrainingDiverged`, and `ValueError` when a group names what no loss reaches,
    or a batch that is cut has masked labels.
    """
    parts = wrap(work.learner, around.ranks, several_updates=len(phase.updates) > 1, sent=around.gradients_sent)
    work.learner.train()  # once: whoever evaluates it restores its mode, and a walk over all modules takes time
    for companion in work.companions.values():
        companion.begin(work.step)
    yield work.step
    if work.step == phase.steps:  # stopped while rules waited for what they write after the last step
        for rule in work.rules.values():
            rule.before_step(work.step)
    for step in range(work.step, phase.steps):
        around.before_step(step)
        if around.ranks.any(around.should_stop()):
            raise StopRequested
        for companion in work.companions.values():
            companion.before_step(step)
        batch = next(batches)
        if around.numerics.accumulate * around.ranks.count > 1:
            _refuse_masked(batch, step)
        batch = batch.to(around.numerics.device)
        stats = train_step(phase, work, parts, batch, around)
        if work.average is not None:
            work.average.update(work.learner)
        work.step = step + 1
        yield step
        last = work.step == phase.steps
        for companion in (work.rules if last else work.companions).values():
            companion.after_step(step)  # what a teacher leaves to its peers at the end, `close` says
        if last and work.rules:
            yield step
            for rule in work.rules.values():
                rule.before_step(work.step)
        around.after_step(work.step, stats)
        yield step


def train_step(
    phase: Phase,
    work: PhaseInProgress,
    parts: Mapping[str, nn.Module],
    batch: Batch,
    around: Surroundings,
) -> dict[str, Tensor]:
    """All updates of one step. Returns what they report: means over the micro-batches, added up where several updates
    report the same name."""
    micros = batch.split(around.numerics.accumulate)
    heard: dict[int, Targets] = {}
    stats: dict[str, Tensor] = {}
    all_heard = True
    for number, update in enumerate(phase.updates):
        work.clear_gradients()
        for at, micro in enumerate(micros):
            targets = heard.pop(at) if at in heard else _targets(work.teachers, micro, around.numerics)
            all_heard &= all(targets.values())
            if number + 1 < len(phase.updates):
                heard[at] = targets
            seed_everything(*around.stream, work.step, number, at, around.ranks.rank)
            with gradients_stay_here(parts, here=at + 1 < len(micros)):
                with around.numerics.autocast():
                    step = Step(work.step, micro, work.learner, parts, targets, work.state, around.ranks.add_up)
                    loss = update.loss(step)
                if loss.said is not None:
                    for teacher in work.teachers.values():
                        teacher.listen(micro, loss.said)
                if loss.value.requires_grad:
                    work.scaler.scale(loss.value / len(micros)).backward()
            for name, value in {"train/loss": loss.value.detach(), **loss.stats}.items():
                stats[name] = stats.get(name, 0.0) + value / len(micros)
        reached = {name: work.groups[name] for name in update.trains if work.groups[name].is_reached}
        if not work.reach_checked:
            _check_reach({name: work.groups[name] for name in update.trains} if all_heard else reached)
        for group in reached.values():
            group.step(work.step, work.scaler)
        if work.scaler.is_enabled() and reached:
            work.scaler.update()
            stats["train/loss_scale"] = torch.tensor(work.scaler.get_scale())
    work.reach_checked |= all_heard
    return stats


def finite(stats: Mapping[str, Tensor], step: int) -> dict[str, float]:
    """The statistics as numbers; raises `TrainingDiverged` when the loss is not one."""
    numbers = {name: float(value) for name, value in stats.items()}
    if not math.isfinite(numbers["train/loss"]):
        raise TrainingDiverged(f"the loss after step {step} is {numbers['train/loss']}; {WHAT_TO_DO}")
    return numbers


def _targets(teachers: Mapping[str, Teacher], batch: Batch, numerics: Numerics) -> Targets:
    # A block of its own: within one, weights cast without gradient would be taken for those with.
    with numerics.autocast():
        return {name: teacher.outputs(batch) for name, teacher in teachers.items()}


def _refuse_masked(batch: Batch, step: int) -> None:
    # Each piece of a batch counts alike, which is wrong where they have unlike numbers of labels.
    masked = int((batch.y == IGNORED).sum())
    if masked:
        raise ValueError(
            f"{masked} of {batch.y.numel()} labels of step {step} are masked ({IGNORED}), and a batch that has such"
            " cannot be cut; set training.accumulate and replicas.ranks to 1, or label all"
        )


def _check_reach(groups: Mapping[str, OpenGroup]) -> None:
    for name, group in groups.items():
        unreached = [key for key, parameter in group.parameters.items() if parameter.grad is None]
        if unreached:
            raise ValueError(f"group '{name}' trains {', '.join(unreached)}, but no loss reaches it")
