"""The models that stand for an arm: of each run the one to serve, or an ensemble; with what they predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from codistill.compare.arms import MAIN, ArmError, Entry, arm_of, finished_attempt
from codistill.compare.metrics import Diversity, diversity, ensemble, log_loss
from codistill.compare.predictions import NothingToCompare, Predictions, read_predictions
from codistill.records import read, values
from codistill.run_dir import RunDir

VALIDATION = "eval/log_loss"
"""What is recorded of a model during training: nats, on validation."""


@dataclass(frozen=True)
class Model:
    """One model, or several averaged, of one run; `run`, `seed` and `replica` are None where it is of several."""

    run: RunDir | None
    fence: int
    seed: int | None
    replica: str | None
    validation: Predictions
    test: Predictions
    diversity: Diversity | None
    """Among the replicas that the run has trained for this arm."""
    seconds: float
    bytes_exchanged: int
    curve: tuple[tuple[int, float], ...] = ()
    """Steps, and log loss on validation after them, as recorded; empty for several averaged."""


@dataclass(frozen=True)
class Incumbent:
    """A deployed model: what it predicted on the test set, and the run and arm that it came from."""

    run: RunDir
    arm: str
    test: Predictions

    def is_relative(self, model: Model) -> bool:
        """Whether it is this very model, or one trained beside it for the same arm, which agrees by construction."""
        return model.run == self.run and (model.replica is None or arm_of(model.replica) == self.arm)


def served_and_ensemble(entry: Entry, *, ensembled: bool) -> tuple[Model, Model | None]:
    """The replica with the lowest log loss on validation; and, if wanted and there are several, their average."""
    validation = {name: read_predictions(entry.run, entry.fence, name, "validation") for name in entry.replicas}
    test = {name: read_predictions(entry.run, entry.fence, name, "test") for name in entry.replicas}
    for split in (validation, test):
        for name, model in split.items():
            require_same_rows(model, f"{name} of {entry.run.job_id}", split[entry.replicas[0]], entry.replicas[0])
    best = min(validation, key=lambda name: log_loss(validation[name]))
    among = diversity(list(test.values()))
    cost = entry.seconds, entry.bytes_exchanged
    run, fence, seed = entry.run, entry.fence, entry.seed
    curve = tuple(zip(*values(read(run, best, "metrics"), VALIDATION), strict=True))
    served = Model(run, fence, seed, best, validation[best], test[best], among, *cost, curve)
    if not ensembled or len(test) < 2:
        return served, None
    means = ensemble(list(validation.values())), ensemble(list(test.values()))
    return served, Model(run, fence, seed, None, *means, None, *cost)


def ensemble_over_runs(models: Sequence[Model]) -> Model:
    """The served models of all runs averaged: one model, of no seed. Its time is what all have taken together."""
    return Model(
        run=None,
        fence=0,
        seed=None,
        replica=None,
        validation=ensemble([model.validation for model in models]),
        test=ensemble([model.test for model in models]),
        diversity=None,
        seconds=sum(model.seconds for model in models),
        bytes_exchanged=sum(model.bytes_exchanged for model in models),
    )


def read_incumbent(run: RunDir, replica: str | None) -> Incumbent:
    """A deployed model; without `replica`, the one that its run would serve.

    Raises `ArmError` when the run has no such replica, `NothingToCompare` when it has not succeeded.
    """
    fence, result = finished_attempt(run)
    ended = [name for name, entry in result["replicas"].items() if entry["outcome"] == "succeeded"]
    if replica is not None:
        if replica not in ended:
            raise ArmError(
                f"--incumbent {run.job_id}:{replica}: that run's replicas are {', '.join(ended)}; name one of them"
            )
        return Incumbent(run, arm_of(replica), read_predictions(run, fence, replica, "test"))
    own = [name for name in ended if arm_of(name) == MAIN]
    if not own:
        raise NothingToCompare(f"no replica of {run.job_id} has succeeded; --incumbent RUN:REPLICA names one")
    losses = {name: log_loss(read_predictions(run, fence, name, "validation")) for name in own}
    best = min(losses, key=lambda name: losses[name])
    return Incumbent(run, MAIN, read_predictions(run, fence, best, "test"))


def require_same_rows(model: Predictions, what: str, reference: Predictions, reference_name: str) -> None:
    """Raise `NothingToCompare` unless both predicted the same samples, with the same labels and classes."""
    if not model.same_rows(reference):
        raise NothingToCompare(
            f"{what} and {reference_name} were tested on different samples, labels or classes;"
            " compare runs of one data set and one split of it"
        )
