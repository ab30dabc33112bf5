"""Studies: which jobs they take, whether arms are given the same, what is trained again, and what is reported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from codistill.compare import NothingToCompare
from codistill.records import METRICS, Recorder
from codistill.run_dir import RunDir, StorageError
from codistill.spec import JobSpec
from codistill.spec_errors import SpecError, parse_spec
from codistill.study import Trial, load_study, trials_of
from codistill.study.effort import Effort, effort_of, flops_by_step, ratios
from codistill.study.report import Report, report_of
from codistill.study.run import train_missing
from codistill.study.spec import parse_study
from codistill.study.text import as_text
from tests.ended_runs import ended_run
from tests.support import SMALL, new_run

LABELS = [0, 1]
STUDY = {
    "name": "tiny",
    "seeds": [1, 2],
    "base": {**SMALL, "method": {"kind": "solo"}},
    "arms": {
        "pair": {"method": {"kind": "codistillation", "burn_in_steps": 4}, "replicas": {"count": 2}},
        "solo": {"replicas": {"count": 1}},
    },
    "grid": {"pair": {"method.weight": [1.0, 2.0], "training.batch_size": [16, 32]}},
}
FACTS = {
    "unit": "tokens",
    "units_per_sample": 3,
    "phases": {
        "teacher": {"steps": 2, "flops_per_step": 100.0, "teachers_flops_per_step": 0.0},
        "train": {"steps": 12, "flops_per_step": 10.0, "teachers_flops_per_step": 1.0},
    },
}


def sure(share: float) -> list[list[float]]:
    return [[share, 1 - share], [1 - share, share]]


# ---------------------------------------------------------------- which jobs


def test_every_combination_with_every_seed_seed_after_seed() -> None:
    trials = trials_of(parse_study(STUDY))
    of_a_seed = ["pair-0", "pair-1", "pair-2", "pair-3", "solo"]
    assert [trial.job_id for trial in trials] == [f"tiny-{arm}-{seed}" for seed in (1, 2) for arm in of_a_seed]
    second = trials[1]
    assert second.settings == {"method.weight": 1.0, "training.batch_size": 32}
    assert (second.spec.training.batch_size, second.spec.seed) == (32, 1)
    assert second.spec.labels == {"study": "tiny", "arm": "pair", "choice": "1"}
    # What gets another kind loses what belonged to the one before; what does not is kept.
    assert second.spec.method.model_dump()["burn_in_steps"] == 4
    assert trials[4].spec.method.kind == "solo"
    assert trials[4].spec.training.steps == SMALL["training"]["steps"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [1, 1]}, "seeds names one twice"),
        ({"baseline": "duo"}, "baseline names 'duo', which is no arm; arms are pair, solo"),
        ({"grid": {"duo": {"seed": [1]}}}, "grid names 'duo'"),
        ({"arms": {"Solo": {}}}, r"arms\.Solo"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_makes_no_study_is_refused_by_name(change: Mapping[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_study({**STUDY, **change})


def test_an_arm_that_is_no_job_is_named() -> None:
    with pytest.raises(SpecError, match=r"arms\.solo\.training\.stepz: unknown key; did you mean 'steps'"):
        trials_of(parse_study({**STUDY, "arms": {"solo": {"training": {"stepz": 1}}}, "grid": {}}))


def test_from_a_file_that_is_toml(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('name = "a"\nseeds = [3]\n[arms.x]\nseed = 1\n[grid.x]\n"training.steps" = [5, 7]\n')
    study = load_study(path)
    assert study.set_against == "x"
    assert [trial.settings for trial in trials_of(study)] == [{"training.steps": 5}, {"training.steps": 7}]


# ---------------------------------------------------------------- what arms are given


def test_effort_counts_all_replicas_and_teachers_from_the_burn_in_on() -> None:
    pair = trials_of(parse_study(STUDY))[0].spec
    assert effort_of(pair, FACTS) == Effort(12 * 16 * 2 * 3, "tokens", 2 * (2 * 100 + 12 * 10 + (12 - 4) * 1))
    # Two steps of the first phase, then five of the second, of which one hears teachers.
    assert flops_by_step(pair, FACTS, 7) == 2 * (2 * 100 + 5 * 10 + 1 * 1)
    assert flops_by_step(pair, FACTS, 1) == 2 * 100


def test_an_arm_that_is_given_more_is_named_and_one_within_a_twentieth_is_not() -> None:
    efforts = {
        "solo": Effort(100, "samples", 100.0),
        "a": Effort(104, "samples", 96.0),
        "b": Effort(100, "samples", 106.0),
    }
    found = ratios(efforts, "solo")
    assert [arm for arm, one in found.items() if not one.is_equal] == ["b"]
    assert str(found["b"]) == "b: 1.00 x the samples, 1.06 x the operations"


# ---------------------------------------------------------------- what is trained


def test_only_what_has_not_ended_well_is_trained_and_what_began_goes_on(tmp_path: Path) -> None:
    study = parse_study({**STUDY, "grid": {}})
    trials = trials_of(study)
    ended_run(tmp_path, "tiny-pair-1", {"replica-0": (sure(0.6), sure(0.6))}, LABELS, spec=trials[0].spec)
    new_run(tmp_path, trials[1].spec, "tiny-solo-1")
    asked: list[tuple[JobSpec, RunDir]] = []

    def train(spec: JobSpec, run: RunDir) -> int:
        asked.append((spec, run))
        return 0 if len(asked) < 3 else 100

    assert train_missing(trials, tmp_path, say=lambda line: None, train=train) == 100
    assert asked == [(trial.spec, RunDir(tmp_path, trial.job_id)) for trial in trials[1:4]]


def test_a_run_of_another_spec_under_the_same_id_is_not_taken_for_the_trial(tmp_path: Path) -> None:
    trials = trials_of(parse_study({**STUDY, "grid": {}}))
    new_run(tmp_path, trials[0].spec.model_copy(update={"seed": 9}), "tiny-pair-1")
    with pytest.raises(StorageError, match="trained with another seed; give the study another name"):
        train_missing(trials, tmp_path, say=lambda line: None, train=lambda spec, run: 0)


# ---------------------------------------------------------------- what is reported


def ended(storage: Path, trial: Trial, validation: float, test: float | None) -> RunDir:
    """A run whose replica 0 is surer than replica 1; without `test`, its predictions on the test set are gone."""
    splits = {
        f"replica-{index}": (sure(validation - index / 100), sure(test or 0.5))
        for index in range(trial.spec.replicas.count)
    }
    run = ended_run(storage, trial.job_id, splits, LABELS, seed=trial.seed, spec=trial.spec)
    if test is None:
        for path in run.root.rglob("test.parquet"):
            path.unlink()
    recorder = Recorder(run.replica(1, "replica-0") / "metrics", METRICS, fence=1, incarnation=0)
    for step, loss in ((4, 0.8), (12, 0.2)):
        recorder.add_values(step, {"eval/log_loss": loss + trial.seed, "exchange/bytes_received": 10.0 * step})
    recorder.flush()
    return run


def reported(storage: Path) -> Report:
    study = parse_study({**STUDY, "grid": {"pair": {"method.weight": [1.0, 2.0]}}, "ensemble_of": ["pair"]})
    trials = trials_of(study)
    quality = {"pair-0": (0.7, None), "pair-1": (0.8, 0.9), "solo": (0.6, 0.6)}
    for trial in trials:
        ended(storage, trial, *quality[trial.job_id.removeprefix("tiny-").rpartition("-")[0]])
    facts = {"unit": "samples", "units_per_sample": 1, "phases": {"train": FACTS["phases"]["train"]}}
    return report_of("tiny", trials, storage, lambda spec: facts, baseline="solo", ensemble_of=study.ensemble_of)


def test_validation_chooses_and_the_test_set_is_looked_at_for_the_chosen_alone(tmp_path: Path) -> None:
    """What was not chosen has no predictions on the test set here, and is not missed."""
    report = reported(tmp_path)
    assert report.chosen == {"pair": 1, "solo": 0}
    assert [one.validation_log_loss for one in report.tried["pair"]] == pytest.approx([0.3566749, 0.2231436])
    rows = {row.arm: row for row in report.comparison.rows}
    assert rows["pair"].log_loss == pytest.approx(0.1053605)
    assert rows["ensemble of 2 pair"].runs == 2
    assert report.as_json()["chosen"] == {"pair": {"method.weight": 2.0}}
    assert report.missing == ()


def test_curves_are_means_over_seeds_against_what_it_took(tmp_path: Path) -> None:
    early, late = reported(tmp_path).curves["pair"]
    assert (early.step, early.log_loss, early.seeds) == (4, pytest.approx(0.8 + 1.5), 2)
    assert (late.log_loss, late.received_bytes) == (pytest.approx(0.2 + 1.5), 120.0)
    assert late.flops == 2 * (12 * 10 + 8 * 1)
    assert reported_solo_bytes(tmp_path) == [40.0, 120.0]


def reported_solo_bytes(storage: Path) -> list[float]:
    report = report_of(
        "tiny",
        [trial for trial in trials_of(parse_study({**STUDY, "grid": {}})) if trial.arm == "solo"],
        storage,
        lambda spec: {"unit": "samples", "units_per_sample": 1, "phases": {"train": FACTS["phases"]["train"]}},
        baseline="solo",
    )
    return [point.received_bytes for point in report.curves["solo"]]


def test_a_seed_that_a_combination_lacks_does_not_choose(tmp_path: Path) -> None:
    """Else a combination could win by having been trained with the easy seeds alone."""
    trials = trials_of(parse_study({**STUDY, "grid": {"pair": {"method.weight": [1.0, 2.0]}}}))
    for trial in trials:
        if (trial.choice, trial.seed) != (1, 1):
            ended(tmp_path, trial, 0.9 if trial.choice or trial.seed == 2 else 0.6, 0.6)
    facts = {"unit": "samples", "units_per_sample": 1, "phases": {"train": FACTS["phases"]["train"]}}
    report = report_of("tiny", trials, tmp_path, lambda spec: facts, baseline="solo")
    assert report.chosen["pair"] == 0
    assert report.missing == ("tiny-pair-1-1",)
    assert "not ended well yet: tiny-pair-1-1" in as_text(report)


def test_without_a_run_of_the_baseline_there_is_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(NothingToCompare, match="baseline 'solo'"):
        report_of("tiny", trials_of(parse_study(STUDY)), tmp_path, lambda spec: FACTS, baseline="solo")


def test_the_page_holds_everything_and_asks_for_nothing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from codistill.study.html import as_html

    report = reported(tmp_path)
    page = as_html(report)
    assert page == as_html(report)
    assert "method.weight = 2.0" in page
    assert "pair (not the same)" in page
    assert page.count("<svg") == 2
    assert not any(word in page for word in ("src=", "<script", "<link", "@import"))


def test_names_of_arms_cannot_become_markup() -> None:
    with pytest.raises(SpecError):
        parse_study({**STUDY, "arms": {"<b>": {}}})
    assert parse_spec({"name": "a"}).name == "a"
