"""Several arms, each of independent runs, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from codistill.compare.arms import Entry, default_baseline, find_entries, known_arm
from codistill.compare.models import (
    Incumbent,
    Model,
    ensemble_over_runs,
    read_incumbent,
    require_same_rows,
    served_and_ensemble,
)
from codistill.compare.paired import repeated
from codistill.compare.predictions import NothingToCompare
from codistill.compare.render import arms_text, as_csv, differences_text
from codistill.compare.rows import Difference, Measured, Row, Score, differences, measure
from codistill.run_dir import RunDir


@dataclass(frozen=True)
class Comparison:
    """One row per arm: given arms in their order, controls found in their runs, ensembles."""

    rows: tuple[Row, ...]
    scores: tuple[Score, ...] = ()
    """Of every single model."""
    baseline: str | None = None
    differences: tuple[Difference, ...] = ()
    """Every other arm less the baseline, by metric; empty with a single arm."""
    notes: tuple[str, ...] = ()
    """What could not be counted or paired, and why."""

    @property
    def served(self) -> Row:
        """The arm to serve: lowest log loss on validation among those that are one model."""
        return min((row for row in self.rows if row.one_model), key=lambda row: row.validation_log_loss)

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "rows": [vars(row) for row in self.rows],
            "served": self.served.arm,
            "baseline": self.baseline,
            "differences": [asdict(one) for one in self.differences],
            "runs": [{key: value for key, value in vars(score).items() if key != "curve"} for score in self.scores],
            "notes": list(self.notes),
        }

    def as_csv(self) -> str:
        """One line per arm and metric."""
        return as_csv(self.rows, self.differences, self.baseline)

    def as_text(self) -> str:
        """Two blocks, arms and differences, then the notes."""
        blocks = [arms_text(self.rows)]
        if self.differences and self.baseline is not None:
            blocks.append(differences_text(self.differences, self.baseline))
        if self.notes:
            blocks.append("\n".join(self.notes))
        return "\n\n".join(blocks)


def compare(
    arms: Mapping[str, Sequence[RunDir]],
    *,
    ensemble_of: str | Sequence[str] = (),
    baseline: str | None = None,
    incumbent: tuple[RunDir, str | None] | None = None,
) -> Comparison:
    """Score the model to serve of every run on the test set, and set every arm against the baseline.

    The model to serve is the replica with the lowest log loss on validation. Churn is measured between *independent*
    runs of an arm, never between the replicas of one run, which agree by construction (Anil et al. 2018, section 4);
    how much those differ is their diversity. `ensemble_of` adds arms of averaged predictions: of the replicas of each
    run where runs have trained several for that arm, else one over all its runs. `baseline` is an arm named solo, or
    else the first, unless given. `incumbent` is a run and perhaps a replica: a deployed model, against which the churn
    of every arm is measured, its own run left out.

    Differences in log loss, accuracy and calibration error are paired by seed, with Student's t interval; those in
    churn have a jackknife interval over seeds (`paired.churn_interval`). Runs that share a seed within an arm stand as
    their mean. Raises `NothingToCompare` when a run has not succeeded or runs were tested on different samples,
    `ArmError` for a name that no arm has.
    """
    wanted = [ensemble_of] if isinstance(ensemble_of, str) else list(ensemble_of)
    entries, notes = find_entries(arms)
    for arm in wanted:
        known_arm(arm, list(entries), "--ensemble-of")
    deployed = None if incumbent is None else read_incumbent(*incumbent)
    return set_against(measure_all(entries, wanted, deployed, notes), baseline, notes)


def set_against(measured: Mapping[str, Measured], baseline: str | None = None, notes: Sequence[str] = ()) -> Comparison:
    """Every arm against the baseline, see `compare`; `notes` stand before those that are found here.

    Raises `ArmError` for a baseline that is none of them, `NothingToCompare` where test samples differ.
    """
    base = known_arm(baseline, list(measured), "--baseline") if baseline else default_baseline(list(measured))
    for arm, one in measured.items():
        if one.test_rows != measured[base].test_rows:
            raise NothingToCompare(
                f"arms '{arm}' and '{base}' were tested on different samples, labels or classes;"
                " compare runs of one data set and one split of it"
            )
    found = [one for arm, it in measured.items() if arm != base for one in differences(it, measured[base])]
    return Comparison(
        rows=tuple(one.row for one in measured.values()),
        scores=tuple(score for one in measured.values() for score in one.scores),
        baseline=base,
        differences=tuple(found),
        notes=(*notes, *_pairing_notes(measured, measured[base], found)),
    )


def measure_all(
    entries: Mapping[str, Sequence[Entry]], wanted: Sequence[str], incumbent: Incumbent | None, notes: list[str]
) -> dict[str, Measured]:
    """Score arm after arm, so that the predictions of one are in memory at a time; ensembles come last."""
    measured: dict[str, Measured] = {}
    ensembles: dict[str, Measured] = {}
    reference: Model | None = None
    for arm, own in entries.items():
        both = [served_and_ensemble(entry, ensembled=arm in wanted) for entry in own]
        models = [served for served, _ in both]
        reference = reference or models[0]
        for model in models:
            require_same_rows(model.test, f"{_name(model)} of arm '{arm}'", reference.test, _name(reference))
        if incumbent is not None:
            require_same_rows(incumbent.test, "the incumbent", reference.test, _name(reference))
            for model in filter(incumbent.is_relative, models):
                notes.append(f"{_name(model)} of arm '{arm}' is of the incumbent's own run: not in churn to it")
        notes += _of_unlike_models(arm, models)
        measured[arm] = measure(arm, models, incumbent)
        if arm in wanted:
            name, averaged = _ensembles(arm, own, both, notes)
            ensembles[name] = measure(name, averaged, incumbent, one_model=False)
    return measured | ensembles


def _ensembles(
    arm: str, entries: Sequence[Entry], both: Sequence[tuple[Model, Model | None]], notes: list[str]
) -> tuple[str, list[Model]]:
    """Name and models of the ensemble of an arm: within each run where possible, else over the runs."""
    sizes = [len(entry.replicas) for entry in entries]
    if max(sizes) == 1:
        models = [served for served, _ in both]
        for model in models:
            require_same_rows(model.validation, f"validation of {_name(model)}", models[0].validation, _name(models[0]))
        return f"ensemble of {len(models)} {arm}", [ensemble_over_runs(models)]
    for entry, size in zip(entries, sizes, strict=True):
        if size < max(sizes):
            notes.append(f"{entry.run.job_id} has {size} of {max(sizes)} replicas of {arm}: no ensemble of that run")
    whole = [averaged for (_, averaged), size in zip(both, sizes, strict=True) if averaged and size == max(sizes)]
    return f"ensemble of {max(sizes)} {arm}", whole


def _of_unlike_models(arm: str, models: Sequence[Model]) -> list[str]:
    """That an arm whose replicas train different models is not the same one of all of them in every run."""
    trained: dict[str, set[str]] = {}
    for model in models:
        if model.run is None or model.replica is None:
            continue
        spec = model.run.read_spec()
        if spec.recipes:
            recipe = spec.for_replica(int(model.replica.rpartition("-")[2])).recipe
            trained.setdefault(recipe.model_dump_json(), set()).add(model.replica)
    if len(trained) < 2:
        return []
    who = " and ".join(sorted(" or ".join(sorted(names)) for names in trained.values()))
    return [f"{arm}: its figures are of unlike models, of each run the one that was best on validation ({who})"]


def _pairing_notes(
    measured: Mapping[str, Measured], baseline: Measured, differences: Sequence[Difference]
) -> list[str]:
    notes: list[str] = []
    for arm, one in measured.items():
        for seed in repeated(one.seeds):
            runs = one.seeds.count(seed)
            notes.append(f"{arm}: {runs} runs have seed {seed}; in differences they stand as their mean")
        if not one.seeds:
            notes.append(f"{arm} is one model of all seeds: no differences between it and other arms")
        elif one.row.one_model and baseline.seeds:
            notes += [*_unpaired(one, baseline), *_unpaired(baseline, one)]
    without = [one.arm for one in differences if one.interval is None and one.metric == "log_loss"]
    few = [one.arm for one in differences if one.interval is None and one.metric == "flips" and one.arm not in without]
    if without:
        notes.append(f"–: an interval needs two seeds that both arms have; too few for {', '.join(without)}")
    if few:
        notes.append(f"–: an interval of churn needs three seeds that both arms have; two for {', '.join(few)}")
    return notes


def _unpaired(here: Measured, there: Measured) -> list[str]:
    alone = [score for score in here.scores if score.seed not in there.seeds]
    if not alone:
        return []
    who = ", ".join(f"{score.run or '-'} (seed {score.seed})" for score in alone)
    return [f"{here.row.arm}: {who} without partner in {there.row.arm}, in no difference between the two"]


def _name(model: Model) -> str:
    return "an ensemble" if model.run is None else f"{model.replica} of {model.run.job_id}"
