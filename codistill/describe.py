"""Facts about a spec without training: `python -P -m codistill.describe SPEC`, JSON on standard output.

Models are built on torch's meta device, which has shapes but no memory, so a machine without the data or a GPU can tell
what a job will take. A service without torch asks this as a command.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codistill.batch import as_outputs
from codistill.exchange.predictions import form_of
from codistill.exchange.weights import bytes_published
from codistill.numerics import all_reduce_bytes
from codistill.recipes import RecipeUnavailable, open_recipe
from codistill.recipes.base import Recipe
from codistill.spec import AdamW, DiLoCo, Installed, JobSpec
from codistill.spec_errors import SpecError, load_spec, parse_spec
from codistill.throughput import TRAINING_FACTOR, forward_flops
from codistill.topology import all_teachers_of, teachers_of

EXIT_BAD_SPEC, EXIT_UNAVAILABLE = 2, 3


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank while it trains, by what they hold; the framework's own and what is cached are not in it."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    teachers: int
    """On the CPU they are mapped from the exchange and shared by all readers of a node; on a GPU, or where they travel
    in another precision, they are copies. Of predictions: what each peer said of each sample, once all were seen."""
    outer: int
    """Weights and momentum of DiLoCo's outer optimizer."""
    activations: int
    """Kept for the backward pass of one micro-batch."""

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def describe(spec: JobSpec) -> dict[str, Any]:
    """What a job of this spec trains, sends and takes. Raises `RecipeUnavailable`, and `ValueError` for options that a
    recipe does not take."""
    recipe = open_recipe(spec)
    with torch.device("meta"):
        model = recipe.build_model()
    model.to("meta")  # what was put elsewhere by name
    taps, activations = _forward(
        recipe, model, spec.training.batch_size // spec.replicas.ranks // spec.training.accumulate
    )
    weights, buffers = _bytes(model.parameters()), _bytes(model.buffers())
    everyone = range(spec.replicas.count) if spec.exchanges else ()
    peers = max((len(teachers_of(spec.exchange.topology, r, spec.replicas.count)) for r in everyone), default=0)
    teachers = 0 if spec.averages else peers
    of_teachers = teachers * (weights + buffers)
    snapshot, evaluated = bytes_published(model, spec.exchange.precision), teachers
    form = form_of(spec.exchange.currency, recipe.classes, tuple(recipe.example(1).y.shape[1:]))
    if form is not None and everyone:
        peers = max(len(all_teachers_of(spec.exchange.topology, r, spec.replicas.count)) for r in everyone)
        snapshot, evaluated = spec.exchange.interval_steps * spec.training.batch_size * form.sent_bytes, 0
        of_teachers = peers * samples_seen(spec) * form.row_bytes
    flops = forward_flops(model, recipe.example(1))
    memory = Memory(
        weights=weights + buffers,
        gradients=weights,
        optimizer=(2 if isinstance(spec.training.optimizer, AdamW) else 1) * weights,
        average=0 if spec.training.ema_decay is None else weights + buffers,
        teachers=of_teachers,
        outer=2 * weights if isinstance(spec.method, DiLoCo) else 0,
        activations=activations,
    )
    return {
        "recipe": spec.recipe.kind,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "classes": recipe.classes,
        "unit": recipe.unit,
        "units_per_sample": recipe.units_per_sample,
        "taps": taps,
        "teachers_per_replica": teachers,
        "bytes_per_snapshot": snapshot,
        "bytes_received_per_exchange": peers * snapshot,
        "gradient_bytes_per_step": all_reduce_bytes(weights, spec.replicas.ranks),
        "forward_flops_per_sample": flops,
        "training_flops_per_step": TRAINING_FACTOR * flops * spec.training.batch_size
        + evaluated * flops * spec.training.batch_size,
        "memory_bytes_per_rank": {**asdict(memory), "total": memory.total},
    }


def samples_seen(spec: JobSpec) -> int:
    """How many samples a replica sees at most."""
    drawn = spec.training.steps * spec.training.batch_size
    size = None if isinstance(spec.recipe, Installed) else spec.recipe.train_size
    return drawn if size is None else min(drawn, size)


def _forward(recipe: Recipe, model: nn.Module, samples: int) -> tuple[dict[str, list[int]], int]:
    """Shapes of the taps for a batch of `samples`, and the bytes that autograd keeps for its backward pass."""
    example = recipe.example(samples)
    # By storage, since several views of one are often kept, and alive, since a storage may take another's place.
    kept: dict[int, Tensor] = {}
    owned = {_storage(tensor) for tensor in [*model.parameters(), *model.buffers()]}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in owned:
            kept.setdefault(_storage(tensor), tensor)
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = as_outputs(model(example.views["x"].to("meta")))
    return {name: list(tap.shape[1:]) for name, tap in outputs.items()}, sum(
        one.untyped_storage().nbytes() for one in kept.values()
    )


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # pyright: ignore[reportPrivateUsage] - the only name a storage has


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="codistill.describe", description="Facts about a spec, without training.")
    parser.add_argument("spec", help="a .toml or .json file; - reads JSON from standard input")
    given = parser.parse_args(arguments)
    try:
        spec = parse_spec(sys.stdin.read()) if given.spec == "-" else load_spec(Path(given.spec))
        print(json.dumps(describe(spec), indent=2))
    except SpecError as error:
        for problem in error.problems:
            print(f"codistill: {problem}", file=sys.stderr)
        return EXIT_BAD_SPEC
    except ValueError as error:
        print(f"codistill: {error}", file=sys.stderr)
        return EXIT_BAD_SPEC
    except RecipeUnavailable as error:
        print(f"codistill: {error}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
