"""Networks that have their first stages in common, or none: several models of a recipe seen as one module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from codistill.batch import Batch, Outputs
from codistill.surgery.stages import Staged, Taps, cut, reached, shapes, stage_count


class Branches(nn.Module):
    """`nets`, of which all see what the first `shared` stages of the first one give; with `shared` = 0 the view itself.

    Taps of branch k begin with `branch{k}/`: its `maps`, which its last stage gives, and all that it says itself,
    `features` and `logits` among them; those of the first have their own names as well. `trunk` is what the stages in
    common give.
    """

    def __init__(self, nets: Sequence[nn.Module], shared: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.shared = shared

    def forward(self, view: Tensor) -> dict[str, Tensor]:
        nets = [cast(Staged, net) for net in self.nets]
        taps: dict[str, Tensor] = {}  # not dict[str, Tensor](), at which torch.compile breaks off
        if self.shared:
            taps["trunk"] = _through(nets[0].stages()[: self.shared], nets[0].enter(view))
        for number, net in enumerate(nets):
            hidden = taps["trunk"] if self.shared else net.enter(view)
            maps = _through(net.stages()[self.shared :], hidden)
            own = {"maps": maps, **net.leave(maps)}
            taps.update({f"branch{number}/{name}": tap for name, tap in own.items()})
        return {**of_branch(taps, 0), **taps}


class Joined(nn.Module):
    """Branches and a module that looks at all of their taps and adds some of its own."""

    def __init__(self, branches: Branches, joint: nn.Module) -> None:
        super().__init__()
        self.branches = branches
        self.joint = joint

    def forward(self, view: Tensor) -> dict[str, Tensor]:
        said = self.branches(view)
        return {**said, **self.joint(said)}


def grown(build: Callable[[], nn.Module], example: Batch, *, branches: int, shared: int) -> Branches:
    """`branches` fresh models, of which the first is whole and the others have none of the parameters that only the
    stages in common need; what their own stages or their head use as well, such as tied embeddings, they keep."""
    nets = [build() for _ in range(branches)]
    if shared:
        names = reached(lambda: Branches([build(), build()], shared), example, "branch1/logits")
        kept = {name.removeprefix("nets.1.") for name in names if name.startswith("nets.1.")}
        for net in nets[1:]:
            _keep_only(net, kept)
    return Branches(nets, shared)


@dataclass(frozen=True)
class SideBySide:
    """How `branches` models of a recipe stand side by side, the first `shared` of their stages in common."""

    build: Callable[[], nn.Module]
    example: Batch
    branches: int
    shared: int
    taps: Mapping[str, tuple[int, ...]]
    """Shape of each tap that one of them gives for one sample."""

    def grow(self) -> Branches:
        """Fresh ones."""
        return grown(self.build, self.example, branches=self.branches, shared=self.shared)


def side_by_side(
    build: Callable[[], nn.Module], example: Batch, *, method: str, branches: int, split: int | None
) -> SideBySide:
    """Models of `build`, with as many stages in common as `split` says, all but the last where it says nothing. Raises
    `ValueError` for a model without a stage after those in common."""

    def staged() -> Taps:
        return cut(build(), method=method, stages=(1 if split is None else split) + 1)

    taps = shapes(staged, example)
    shared = stage_count(taps) - 1 if split is None else split
    return SideBySide(lambda: staged().net, example, branches, shared, taps)


def of_branch(said: Outputs, number: int) -> dict[str, Tensor]:
    """The taps of one branch under their own names."""
    prefix = f"branch{number}/"
    return {name.removeprefix(prefix): tap for name, tap in said.items() if name.startswith(prefix)}


def of_each(said: Outputs, tap: str) -> list[Tensor]:
    """A tap of every branch, in order."""
    return [value for name, value in said.items() if name.startswith("branch") and name.endswith(f"/{tap}")]


def first_net(learner: nn.ModuleDict) -> nn.Module:
    """The first branch of the part `net`, which is a `Joined`: with the stages in common, as the recipe built it."""
    net = learner["net"]
    assert isinstance(net, Joined)
    return net.branches.nets[0]


def _through(stages: Sequence[nn.Module], hidden: Tensor) -> Tensor:
    for stage in stages:
        hidden = stage(hidden)
    return hidden


def _keep_only(net: nn.Module, kept: set[str]) -> None:
    """Take all parameters but those out of `net`, and the layers that have lost every one of theirs, with their
    buffers."""
    held = {id(parameter) for name, parameter in net.named_parameters() if name in kept}
    for module in list(net.modules()):
        for name, layer in list(module.named_children()):
            parameters = list(layer.parameters())
            is_leaf = next(layer.children(), None) is None
            if is_leaf and parameters and held.isdisjoint(map(id, parameters)):
                setattr(module, name, nn.Identity())
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in held:
                module.register_parameter(name, None)
