"""What one teacher costs: `python -m tests.benchmarks.teacher_tax`.

A replica of the product with one peer, beside the same replica while the exchange stands still, and beside mutual
learning written out bare: two nets, per step of a model; all in turns on one thread of one process, since two processes
of the same training differ by more than is to be seen. As Zhang et al. (2018, Algorithm 1) have it, each net learns
from what the other says *after* its own update (fresh logits): one more forward a step, as here. With both updated at
once from the same forwards (shared logits) mutual learning takes none; that is the floor, and out of reach for models
in two places.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from codistill.batch import as_outputs
from tests.benchmarks.contenders import (
    ASKING,
    EXCHANGE,
    INTERVAL_STEPS,
    PAIR,
    first_recipe,
    held_batches,
    interleaved_for,
    new_job,
    open_replica,
    recipe_of,
    train_for_ever,
    two_cores,
    without,
    working,
)
from tests.benchmarks.report import beside_first, table
from tests.benchmarks.training import Arm


def main() -> None:
    (name, size), (_, other) = first_recipe(), two_cores()
    with tempfile.TemporaryDirectory() as folder:
        pair = new_job(Path(folder), "pair", size, **PAIR)
        peer = partial(train_for_ever, pair, 1, name, size)
        with working(peer, other), closing(open_replica(pair, 0, name, size)) as replica:
            interval = partial(replica.chunk, INTERVAL_STEPS)
            fresh, shared = (mutual_learning(name, size, fresh=fresh) for fresh in (True, False))
            chunks = {
                "one teacher": interval,
                "alone": without([*EXCHANGE, *ASKING], interval),
                "mutual learning, fresh logits": without(EXCHANGE, partial(fresh.chunk, INTERVAL_STEPS)),
                "mutual learning, shared logits": without(EXCHANGE, partial(shared.chunk, INTERVAL_STEPS)),
            }
            taken = interleaved_for(chunks, INTERVAL_STEPS)
    title = (
        f"Teacher tax, {name}, batch {size}: one step of a model"
        " (aims: one teacher takes <= 1.40 of alone, <= 1.05 of mutual learning with fresh logits)"
    )
    rows = [[*row[:2], spread_of_inverse(taken, row[0])] for row in beside_first(taken)]
    print(table(title, ["training", "ms a step: median (range)", "one teacher takes ... of it"], rows), flush=True)


def spread_of_inverse(taken: dict[str, list[float]], arm: str) -> str:
    ratios = sorted(own / base for own, base in zip(taken["one teacher"][1:], taken[arm][1:], strict=True))
    return f"{ratios[len(ratios) // 2]:.3f} ({ratios[0]:.3f}–{ratios[-1]:.3f})"


def mutual_learning(name: str, size: int, *, fresh: bool) -> Arm:
    """Two nets that teach each other; every advance is a step of one of them."""
    steps = fresh_steps(name, size) if fresh else shared_steps(name, size)
    return Arm(lambda: next(steps))


def fresh_steps(name: str, size: int) -> Iterator[None]:
    recipe = recipe_of(name)
    nets = [recipe.build_model() for _ in range(2)]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4) for net in nets]
    for batch in itertools.cycle(held_batches(recipe, size)):
        for me, other in ((0, 1), (1, 0)):
            with torch.no_grad():
                told = as_outputs(nets[other](batch.views["x"]))["logits"]
            said = as_outputs(nets[me](batch.views["x"]))
            optimizers[me].zero_grad(set_to_none=True)
            (recipe.task_loss(said, batch) + soft_cross_entropy(said["logits"], told)).backward()
            optimizers[me].step()
            yield


def shared_steps(name: str, size: int) -> Iterator[None]:
    recipe = recipe_of(name)
    nets = [recipe.build_model() for _ in range(2)]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4) for net in nets]
    for batch in itertools.cycle(held_batches(recipe, size)):
        said = [as_outputs(net(batch.views["x"])) for net in nets]
        for me, other in ((0, 1), (1, 0)):
            optimizers[me].zero_grad(set_to_none=True)
            told = said[other]["logits"].detach()
            (recipe.task_loss(said[me], batch) + soft_cross_entropy(said[me]["logits"], told)).backward()
        for optimizer in optimizers:
            optimizer.step()
        yield
        yield  # the other one's step is done as well


def soft_cross_entropy(said: Tensor, told: Tensor) -> Tensor:
    classes = said.shape[-1]
    return F.cross_entropy(said.reshape(-1, classes), F.softmax(told, dim=-1).reshape(-1, classes))


if __name__ == "__main__":
    main()
