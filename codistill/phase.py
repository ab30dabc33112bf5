"""The words that methods are written in.

A method is a function (spec, recipe, replica) -> phases. A *learner* is a set of named *parts*; a part maps tensors to
named taps, and is what is called, wrapped and compiled. An *update* is a loss and the groups it trains: one forward,
one backward, one optimizer step. A *group* is parameters with an optimizer of their own. A *survey* measures without
training. What no group names is frozen, buffers included.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from codistill.batch import Batch, Outputs, as_outputs
from codistill.companion import ExchangeRule
from codistill.schedules import Factor
from codistill.teachers import TeacherSource

Learner = nn.ModuleDict
State = Mapping[str, Tensor]
"""What adapts during a phase, changed only by `Survey.fold`; checkpointed, equal on all ranks."""


@dataclass(frozen=True)
class Replica:
    """Who is asking: which replica of how many, from which seed, and which of its ranks."""

    index: int
    count: int
    seed: int
    rank: int = 0
    ranks: int = 1


@dataclass(frozen=True)
class Step:
    """All that a loss sees."""

    index: int
    """Updates completed before this step."""
    batch: Batch
    learner: Learner
    parts: Mapping[str, nn.Module]
    """The learner's parts as they are called: wrapped, where several ranks train them."""
    targets: Mapping[str, Sequence[Outputs]]
    """What each teacher source answered, by its name; an empty list means nobody was there."""
    state: State
    add_up: Callable[[Tensor], Tensor] = lambda sums: sums
    """The sum of a small tensor over the ranks of the replica, the same on each; all of them call it as often, with the
    same shape. No gradient passes."""

    def show(self, part: str, view: str = "x") -> Outputs:
        """The taps of `part` for a view of the batch."""
        return as_outputs(self.parts[part](self.batch.views[view]))


@dataclass(frozen=True)
class Loss:
    """A scalar to go down, and scalars to be logged. `stats` are detached means over the batch."""

    value: Tensor
    """Of what it does not reach nothing is moved in this step, neither by an optimizer nor by weight decay; without
    gradient, nothing at all."""
    stats: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    said: Outputs | None = None
    """What the student said of the batch, for those who pass it on to its peers."""


@dataclass(frozen=True)
class Update:
    """One forward, one backward, one optimizer step of the named groups."""

    loss: Callable[[Step], Loss]
    trains: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Parameters that are optimised together."""

    select: tuple[str, ...]
    """Globs over the learner's parameter names, e.g. `net.*`."""
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    schedule: Factor
    """Factor of the optimizer's learning rate at each step."""
    clip_norm: float | None = None
    decay_schedule: Factor = lambda step: 1.0
    """Factor of the optimizer's weight decay at each step."""

    def parameters(self, learner: Learner) -> dict[str, nn.Parameter]:
        """The parameters selected, by name; raises `ValueError` when a glob matches none."""
        named = dict(learner.named_parameters())
        for glob in self.select:
            if not fnmatch.filter(named, glob):
                raise ValueError(f"a group selects '{glob}', but the learner has only {', '.join(sorted(named))}")
        return {name: p for name, p in named.items() if any(fnmatch.fnmatchcase(name, glob) for glob in self.select)}


@dataclass(frozen=True)
class Survey:
    """A measurement that trains nothing."""

    name: str
    every_steps: int
    batches: Callable[[], Iterable[Batch]]
    measure: Callable[[Learner, Batch], Mapping[str, float]]
    """Sums over one batch, among them `count`; added up over all batches."""
    report: Callable[[Mapping[str, float]], Mapping[str, float]]
    """From the sums to what is logged."""
    fold: Callable[[State, Mapping[str, float]], State] | None = None
    """From the phase's state and the sums over all ranks to the next state. What it measures is then the learner as it
    is trained, not its moving average."""


@dataclass(frozen=True)
class Artifacts:
    """What the phases before left behind: their learners as they ended, by phase name, to be read only."""

    learners: Mapping[str, Learner] = field(default_factory=dict[str, Learner])


@dataclass(frozen=True)
class Phase:
    """A stretch of training in which everything below stays the same."""

    name: str
    steps: int
    learner: Callable[[Artifacts], Learner]
    """Builds the learner; called within the random stream of this replica and phase."""
    batches: Callable[[Artifacts], Callable[[int], Batch]]
    """From a step to its batch, which is a pure function of the step."""
    updates: Sequence[Update]
    groups: Mapping[str, Group]
    teachers: Sequence[TeacherSource] = ()
    rules: Sequence[ExchangeRule] = ()
    surveys: Sequence[Survey] = ()
    export: Callable[[Learner], nn.Module] = lambda learner: learner["net"]
    """What is evaluated and served; holds no parameter that only training needs."""
    state: Callable[[], State] = dict
