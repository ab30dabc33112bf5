"""A model cut into stages, so that what happens between them can be seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from codistill.batch import Batch, Outputs, as_outputs


@runtime_checkable
class Staged(Protocol):
    """What a model offers that can be cut: calling it is `leave(last(... first(enter(view))))` of its stages."""

    def enter(self, view: Tensor) -> Tensor:
        """From a view [N, ...] to what the first stage is shown."""
        ...

    def stages(self) -> Sequence[nn.Module]:
        """At least one; each maps what the one before gives, [N, ...]."""
        ...

    def leave(self, hidden: Tensor) -> Outputs:
        """From what the last stage gives to the taps, `features` and `logits` among them."""
        ...


class Taps(nn.Module):
    """A staged model `net` that also answers what each of its stages gives: taps `stage0`, `stage1`, ..."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, view: Tensor) -> dict[str, Tensor]:
        staged = cast(Staged, self.net)
        hidden = staged.enter(view)
        taps: dict[str, Tensor] = {}  # not dict[str, Tensor](), at which torch.compile breaks off
        for number, stage in enumerate(staged.stages()):
            hidden = taps[f"stage{number}"] = stage(hidden)
        return {**taps, **staged.leave(hidden)}


class Until(nn.Module):
    """A staged model `net` as far as stage `last`: answers what that gives, and passes through nothing after it."""

    def __init__(self, net: nn.Module, last: int) -> None:
        super().__init__()
        self.net, self.last = net, last

    def forward(self, view: Tensor) -> Tensor:
        staged = cast(Staged, self.net)
        hidden = staged.enter(view)
        for stage in staged.stages()[: self.last + 1]:
            hidden = stage(hidden)
        return hidden


def cut(model: nn.Module, *, method: str, stages: int = 1) -> Taps:
    """`model`, with taps. Raises `ValueError` when it offers fewer than `stages` stages."""
    if not isinstance(model, Staged):
        raise ValueError(
            f"method '{method}' looks between the stages of a model, and {type(model).__name__} offers none; give it"
            " enter(), stages() and leave() (see codistill.surgery.stages.Staged), or use another method"
        )
    found = len(cast(Staged, model).stages())
    if found < stages:
        raise ValueError(
            f"method '{method}' needs a model of at least {stages} stages, this {type(model).__name__} has {found};"
            " give the recipe's model more layers"
        )
    return Taps(model)


def shapes(build: Callable[[], nn.Module], example: Batch, view: str = "x") -> dict[str, tuple[int, ...]]:
    """Shape of each tap that the module of `build` gives for one sample. Nothing is computed."""
    module = _without_memory(build)
    return {name: tuple(tap.shape[1:]) for name, tap in as_outputs(module(_shown(example, view))).items()}


def stage_count(taps: Iterable[str]) -> int:
    """Of how many stages a model with taps of these names is."""
    return sum(name.startswith("stage") for name in taps)


def last_stage(taps: Iterable[str]) -> str:
    """The tap of the last stage."""
    return f"stage{stage_count(taps) - 1}"


def reached(build: Callable[[], nn.Module], example: Batch, tap: str, view: str = "x") -> list[str]:
    """Names of the parameters of the module of `build` that the tap depends on. Nothing is computed."""
    module = _without_memory(build)
    named = dict(module.named_parameters())
    taps: Mapping[str, Tensor] = module(_shown(example, view))
    taps[tap].sum().backward()
    return [name for name, parameter in named.items() if parameter.grad is not None]


def _without_memory(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build().to("meta")  # what was put elsewhere by name


def _shown(example: Batch, view: str) -> Tensor:
    return example.views[view].to("meta")
