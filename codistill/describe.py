"""Facts about a spec without training: `python -P -m codistill.describe SPEC`, JSON on standard output.

With `--serve` in place of a spec it goes on for ever: a spec a line on standard input, an answer a line on standard
output.

Models are built on torch's meta device, which has shapes but no memory, so a machine without the data or a GPU can tell
what a job will take. A service without torch asks this as a command.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from codistill.batch import as_outputs
from codistill.cost import PhaseCost, cost_of
from codistill.exchange.predictions import form_of
from codistill.exchange.weights import bytes_published
from codistill.methods import phase_of, plan
from codistill.methods.common import TRAIN
from codistill.numerics import all_reduce_bytes
from codistill.phase import Artifacts, Learner, Replica
from codistill.price import exchanges_of
from codistill.recipes import RecipeUnavailable, open_recipe
from codistill.recipes.base import Recipe
from codistill.spec import Codistillation, DiLoCo, Ensemble, Installed, JobSpec, KnowledgeDistillation
from codistill.spec_errors import SpecError, parse_spec
from codistill.spec_files import load_spec
from codistill.throughput import forward_flops
from codistill.topology import all_teachers_of, teachers_of

EXIT_BAD_SPEC, EXIT_UNAVAILABLE = 2, 3


@dataclass(frozen=True)
class Memory:
    """Bytes of the first rank while it trains, by what they hold, but for the framework's own and what is cached."""

    weights: int
    """Of the learner, and of those of phases before, which stay."""
    gradients: int
    optimizer: int
    average: int
    teachers: int
    """On the CPU they are mapped from the exchange and shared by all readers of a node; on a GPU, or where they travel
    in another precision, they are copies. Of predictions: what each peer said of each sample, once all were seen."""
    outgoing: int
    """The host's copy of what is published, for the helper thread; two where sending takes longer than an interval."""
    outer: int
    """Weights and momentum of DiLoCo's outer optimizer."""
    activations: int
    """Kept for the backward pass of one micro-batch."""

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def describe(spec: JobSpec) -> dict[str, Any]:
    """What a job of this spec trains, sends and takes: each replica of it, or where they differ, the first, but for
    memory, teachers and bytes received, which are the most that any has, and `replicas`, the facts of each.

    Raises `RecipeUnavailable`, and `ValueError` for options that a recipe does not take, or a recipe that has not what
    the method needs.
    """
    # Of one recipe all that makes a difference is how many a replica hears.
    alike = [replica if spec.recipes else len(peers_of(spec, replica)) for replica in range(spec.replicas.count)]
    found = {key: facts_of(spec, alike.index(key)) for key in dict.fromkeys(alike)}
    each = [found[key] for key in alike]
    if all(one == each[0] for one in each):
        return each[0]
    most = {
        "memory_bytes_per_rank": max((one["memory_bytes_per_rank"] for one in each), key=lambda one: one["total"]),
        **{what: max(one[what] for one in each) for what in ("teachers_per_replica", "bytes_received_per_exchange")},
    }
    return {**each[0], **most, "replicas": each}


def peers_of(spec: JobSpec, replica: int) -> tuple[int, ...]:
    """Whom a replica hears at once."""
    return teachers_of(spec.exchange.topology, replica, spec.replicas.count) if exchanges_of(spec) else ()


def facts_of(spec: JobSpec, replica: int) -> dict[str, Any]:
    """What one replica of the job trains, sends and takes."""
    heard, spec = [(peer, spec.for_replica(peer)) for peer in peers_of(spec, replica)], spec.for_replica(replica)
    recipe = open_recipe(spec)
    model = model_of(recipe)
    teachers = [] if spec.averages else [peer for peer, _ in heard]
    snapshot = snapshot_bytes(spec, replica)
    received = sum(snapshot_bytes(spec, peer) for peer, _ in heard) if spec.recipes else len(heard) * snapshot
    costs = costs_of(spec, recipe, teachers)
    form = form_of(spec.exchange.currency, spec.method, recipe.classes, tuple(recipe.example(1).y.shape[1:]))
    table_bytes = 0
    if form is not None and exchanges_of(spec):
        peers = len(all_teachers_of(spec.exchange.topology, replica, spec.replicas.count))
        snapshot = spec.exchange.interval_steps * spec.training.batch_size * form.sent_bytes
        received = peers * snapshot
        table_bytes = peers * samples_seen(spec) * form.row_bytes
    if isinstance(spec.method, KnowledgeDistillation) and spec.method.cache_predictions:
        table_bytes = cached_bytes(spec, recipe)
    micros = spec.replicas.ranks * spec.training.accumulate
    memory = max(
        memories(spec, list(costs.values()), table_bytes, snapshot if exchanges_of(spec) else 0),
        key=lambda one: one.total,
    )
    return {
        "recipe": spec.recipe.kind,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "classes": recipe.classes,
        "unit": recipe.unit,
        "units_per_sample": recipe.units_per_sample,
        "taps": {name: list(tap.shape[1:]) for name, tap in as_outputs(model(example_of(recipe, 2))).items()},
        "teachers_per_replica": len(teachers),
        "bytes_per_snapshot": snapshot,
        "bytes_received_per_exchange": spec.replicas.ranks * received,
        "gradient_bytes_per_step": all_reduce_bytes(costs[TRAIN].gradients_bytes, spec.replicas.ranks),
        "forward_flops_per_sample": forward_flops(model, recipe.example(1)),
        "phases": {
            name: {
                "steps": cost.steps,
                "parameters": cost.parameters,
                "flops_per_step": micros * cost.flops,
                "teachers_flops_per_step": micros * cost.teachers_flops,
            }
            for name, cost in costs.items()
        },
        "memory_bytes_per_rank": {**asdict(memory), "total": memory.total},
    }


def model_of(recipe: Recipe) -> nn.Module:
    """The model of a recipe, on the meta device."""
    with torch.device("meta"):
        model = recipe.build_model()
    return model.to("meta")  # what was put elsewhere by name


def snapshot_bytes(spec: JobSpec, replica: int) -> int:
    """Of the weights that a replica publishes: its model's, and what critics of its peers need beside it."""
    its = spec.for_replica(replica)
    shown = model_of(open_recipe(its))
    if isinstance(its.method, Codistillation) and its.method.critics is not None:
        (phase,) = plan(its, open_recipe(its), Replica(replica, its.replicas.count, its.seed))
        with torch.device("meta"):
            shown = phase.learner(Artifacts())["net"].to("meta")
    return bytes_published(shown, its.exchange.precision)


def costs_of(spec: JobSpec, recipe: Recipe, peers: Sequence[int]) -> dict[str, PhaseCost]:
    """What each phase of a replica of `recipe` takes of its first rank, with these peers heard."""
    samples = spec.training.batch_size // spec.replicas.ranks // spec.training.accumulate
    finished: dict[str, Learner] = {}
    costs: dict[str, PhaseCost] = {}
    for phase in plan(spec, recipe, Replica(0, spec.replicas.count, spec.seed, 0, spec.replicas.ranks)):
        others = [phase_of(spec, peer, phase.name) for peer in peers] if spec.recipes else []
        cost, finished[phase.name] = cost_of(phase, finished, recipe.example(samples), len(peers), others)
        costs[phase.name] = cost
    return costs


def cached_bytes(spec: JobSpec, recipe: Recipe) -> int:
    """Of all that trained teachers say of the samples, where that is kept."""
    teacher = getattr(spec.method, "teacher", None)
    models = len(teacher.of) if isinstance(teacher, Ensemble) else 1
    return 4 * models * samples_seen(spec) * math.prod(recipe.example(1).y.shape[1:]) * recipe.classes


def samples_seen(spec: JobSpec) -> int:
    """How many samples a replica sees at most."""
    drawn = spec.training.steps * spec.training.batch_size
    size = None if isinstance(spec.recipe, Installed) else spec.recipe.train_size
    return drawn if size is None else min(drawn, size)


def memories(spec: JobSpec, costs: Sequence[PhaseCost], table_bytes: int, snapshot_bytes: int) -> Iterator[Memory]:
    """Of each phase; `table_bytes` is what peers have said, where predictions travel, and `snapshot_bytes` what is
    published at once."""
    before = 0
    for cost in costs:
        yield Memory(
            weights=before + cost.weights_bytes,
            gradients=cost.gradients_bytes,
            optimizer=cost.optimizer_bytes,
            average=0 if spec.training.ema_decay is None else cost.weights_bytes,
            teachers=cost.teachers_bytes + table_bytes,
            outgoing=snapshot_bytes,
            outer=2 * cost.gradients_bytes if isinstance(spec.method, DiLoCo) else 0,
            activations=cost.activations_bytes,
        )
        before += cost.weights_bytes


def example_of(recipe: Recipe, samples: int) -> Tensor:
    """What the model is shown, on the meta device."""
    return recipe.example(samples).views["x"].to("meta")


def serve(specs: Iterable[str], answers: TextIO) -> None:
    """First `{"ready": true}`; then for each line, a spec, one line: `{"facts": ...}`, or `{"unknown": why}`."""
    _answer(answers, {"ready": True})
    for line in specs:
        try:
            _answer(answers, {"facts": describe(parse_spec(line))})
        except Exception as error:  # of a recipe that somebody has installed, too: the next spec is another
            _answer(answers, {"unknown": f"{error}" or type(error).__name__})


def _answer(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="codistill.describe", description="Facts about a spec, without training.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("spec", nargs="?", help="a .toml or .json file; - reads JSON from standard input")
    what.add_argument("--serve", action="store_true", help="answer line by line")
    given = parser.parse_args(arguments)
    if given.serve:
        answers = sys.stdout
        with redirect_stdout(sys.stderr):  # whatever a recipe prints is no answer
            serve(sys.stdin, answers)
        return 0
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
