"""The comparison, against numbers worked out by hand."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codistill.compare import ArmError, NothingToCompare, compare, group_by_spec
from codistill.outcome import Reason, ReplicaOutcome, attempt_result
from codistill.run_dir import RunDir, write_json
from tests.ended_runs import ended_run
from tests.support import SMALL, new_run, small_spec

LABELS = [0, 1]
SURE = [[0.9, 0.1], [0.2, 0.8]]
DOUBT = [[0.6, 0.4], [0.6, 0.4]]
WRONG = [[0.1, 0.9], [0.9, 0.1]]


def sure(share: float) -> list[list[float]]:
    """Both samples right with this probability."""
    return [[share, 1 - share], [1 - share, share]]


def one_model_runs(storage: Path, arm: str, shares: dict[int, float]) -> list[RunDir]:
    """By seed, how sure the only model of each run is."""
    return [
        ended_run(storage, f"{arm}-{seed}", {"replica-0": (sure(share), sure(share))}, LABELS, seed=seed)
        for seed, share in shares.items()
    ]


# ---------------------------------------------------------------- arms


def test_one_model_of_each_run_is_chosen_on_validation_and_scored_on_test(tmp_path: Path) -> None:
    # Run a: replica 1 is better on validation, though worse on the test; it must be the one scored.
    a = ended_run(tmp_path, "a", {"replica-0": (DOUBT, SURE), "replica-1": (SURE, DOUBT)}, LABELS)
    b = ended_run(tmp_path, "b", {"replica-0": (SURE, SURE), "replica-1": (WRONG, WRONG)}, LABELS, seed=1)
    comparison = compare({"pair": [a, b]})
    row = comparison.rows[0]
    assert row.accuracy == pytest.approx((0.5 + 1.0) / 2)
    of_doubt, of_sure = -np.log([0.6, 0.4]).mean(), -np.log([0.9, 0.8]).mean()
    assert row.log_loss == pytest.approx((of_doubt + of_sure) / 2)
    assert row.validation_log_loss == pytest.approx(of_sure)
    assert row.mean_abs_difference == pytest.approx((0.3 + 0.3 + 0.4 + 0.4) / 4)
    assert row.flips == pytest.approx(0.5)
    # Confidence 0.6 twice, one of two right, in one bin; confidences 0.9 and 0.8, both right.
    assert row.calibration_error == pytest.approx((0.1 + 0.15) / 2)
    assert row.confidence_gap == pytest.approx((0.1 - 0.15) / 2)
    assert row.diversity_flips == pytest.approx((0.5 + 1.0) / 2)
    assert row.seconds == pytest.approx(3.0)
    assert row.bytes_exchanged == 400
    assert [(score.replica, score.seed) for score in comparison.scores] == [("replica-1", 0), ("replica-0", 1)]
    assert comparison.differences == ()


def test_it_is_said_that_the_best_of_unlike_models_is_not_the_same_in_every_run(tmp_path: Path) -> None:
    small, large = ({**SMALL["recipe"], "width": width} for width in (4, 8))
    ahead = {"replica-0": (DOUBT, DOUBT), "replica-1": (SURE, SURE)}
    behind = {"replica-0": (SURE, SURE), "replica-1": (DOUBT, DOUBT)}

    def runs(name: str, *, recipes: list[dict[str, Any]] | None) -> list[RunDir]:
        return [
            ended_run(
                tmp_path, f"{name}-{seed}", splits, LABELS, seed=seed,
                spec=small_spec(seed=seed, **({} if recipes is None else {"recipe": recipes[0], "recipes": recipes})),
            )
            for seed, splits in enumerate((ahead, behind))
        ]  # fmt: skip

    unlike, alike = runs("unlike", recipes=[small, large]), runs("alike", recipes=None)
    notes = compare({"alike": alike, "unlike": unlike}).notes
    assert notes[0] == (
        "unlike: its figures are of unlike models, of each run the one that was best on validation"
        " (replica-0 and replica-1)"
    )
    assert not any(note.startswith("alike: its figures") for note in notes)
    assert not any("unlike models" in note for note in compare({"unlike": unlike[:1], "alike": alike}).notes)


def test_an_ensemble_over_runs_of_one_model_averages_probabilities(tmp_path: Path) -> None:
    a, b = [
        ended_run(tmp_path, n, {"replica-0": (p, p)}, LABELS, seed=s) for n, p, s in [("a", SURE, 1), ("b", DOUBT, 2)]
    ]
    c, d = [ended_run(tmp_path, n, {"replica-0": (DOUBT, DOUBT)}, LABELS, seed=s) for n, s in [("c", 1), ("d", 2)]]
    comparison = compare({"solo": [a, b], "pair": [c, d]}, ensemble_of="solo")
    assert [row.arm for row in comparison.rows] == ["solo", "pair", "ensemble of 2 solo"]
    both = comparison.rows[2]
    assert both.log_loss == pytest.approx(-np.log([0.75, 0.6]).mean())
    assert (both.runs, both.seconds, both.mean_abs_difference) == (1, 4.0, None)
    assert comparison.served.arm == "solo"
    assert {one.arm for one in comparison.differences} == {"pair"}
    assert any("ensemble of 2 solo is one model of all seeds" in note for note in comparison.notes)


def test_an_ensemble_of_the_replicas_of_each_run_is_an_arm_with_seeds(tmp_path: Path) -> None:
    runs = [
        ended_run(tmp_path, f"r-{seed}", {"replica-0": (SURE, SURE), "replica-1": (other, other)}, LABELS, seed=seed)
        for seed, other in enumerate([DOUBT, WRONG])
    ]
    comparison = compare({"pair": runs}, ensemble_of=["pair"])
    served, averaged = comparison.rows
    assert (averaged.arm, averaged.runs, averaged.one_model) == ("ensemble of 2 pair", 2, False)
    losses = [-np.log([0.75, 0.6]).mean(), -np.log([0.5, 0.45]).mean()]
    assert averaged.log_loss == pytest.approx(np.mean(losses))
    assert averaged.mean_abs_difference == pytest.approx((0.25 + 0.25 + 0.15 + 0.15) / 4)
    difference = next(one for one in comparison.differences if one.metric == "log_loss")
    assert difference.n == 2
    assert difference.interval is not None
    assert difference.interval.mean == pytest.approx(averaged.log_loss - served.log_loss)


def test_a_run_that_has_lost_a_replica_has_no_ensemble(tmp_path: Path) -> None:
    both = {"replica-0": (SURE, SURE), "replica-1": (DOUBT, DOUBT)}
    whole = ended_run(tmp_path, "whole", both, LABELS, seed=1)
    degraded = ended_run(tmp_path, "degraded", {"replica-0": (WRONG, WRONG)}, LABELS, seed=2, failed=["replica-1"])
    comparison = compare({"pair": [whole, degraded]}, ensemble_of="pair")
    averaged = comparison.rows[1]
    assert (averaged.arm, averaged.runs) == ("ensemble of 2 pair", 1)
    assert averaged.log_loss == pytest.approx(-np.log([0.75, 0.6]).mean())
    assert "degraded has 1 of 2 replicas of pair: no ensemble of that run" in comparison.notes


def test_controls_of_a_run_are_arms_of_their_own_and_paired_with_it(tmp_path: Path) -> None:
    runs = [
        ended_run(
            tmp_path,
            f"r-{seed}",
            {
                "replica-0": (sure(0.9), sure(0.9)),
                "replica-1": (sure(0.8), sure(0.8)),
                "solo-0": (sure(share), sure(share)),
                "label-smoothing-0": (sure(0.7), sure(0.7)),
            },
            LABELS,
            seed=seed,
        )
        for seed, share in enumerate([0.5, 0.7])
    ]
    comparison = compare({"pair": runs})
    assert [row.arm for row in comparison.rows] == ["pair", "label-smoothing", "solo"]
    assert [row.seconds for row in comparison.rows] == [4.0, 2.0, 5.0]  # by name: 2 s, and one more for each
    assert comparison.baseline == "solo"
    found = {(one.arm, one.metric): one for one in comparison.differences}
    gain = found["pair", "log_loss"].interval
    assert gain is not None
    assert gain.mean == pytest.approx(-np.log(0.9) + (np.log(0.5) + np.log(0.7)) / 2)


def test_a_control_that_two_arms_have_brought_bears_the_arm_in_its_name(tmp_path: Path) -> None:
    def run(name: str, control: str) -> RunDir:
        return ended_run(tmp_path, name, {"replica-0": (SURE, SURE), f"{control}-0": (DOUBT, DOUBT)}, LABELS)

    comparison = compare({"same": [run("a", "solo")], "disjoint": [run("b", "solo")], "x": [run("c", "same")]})
    assert [row.arm for row in comparison.rows] == ["same", "disjoint", "x", "same/solo", "disjoint/solo", "x/same"]
    assert comparison.baseline == "same"


def test_a_replica_that_failed_is_left_out_and_named(tmp_path: Path) -> None:
    run = ended_run(tmp_path, "a", {"replica-0": (DOUBT, DOUBT)}, LABELS, failed=["replica-1", "solo-0"])
    comparison = compare({"pair": [run]})
    assert [row.arm for row in comparison.rows] == ["pair"]
    assert comparison.notes[:2] == ("replica-1 of a failed: left out", "solo-0 of a failed: left out")


def test_churn_against_a_deployed_model(tmp_path: Path) -> None:
    old = ended_run(tmp_path, "old", {"replica-0": (SURE, DOUBT), "replica-1": (DOUBT, SURE)}, LABELS)
    runs = [ended_run(tmp_path, f"new-{i}", {"replica-0": (p, p)}, LABELS, seed=i) for i, p in enumerate([SURE, WRONG])]
    # Its run would serve replica 0, better on validation, which predicts DOUBT on the test.
    served = compare({"new": runs[:1]}, incumbent=(old, None)).rows[0]
    assert served.incumbent_flips == pytest.approx(0.5)
    assert served.incumbent_mean_abs_difference == pytest.approx(1.4 / 4)
    named = compare({"new": runs}, incumbent=(old, "replica-1")).rows[0]
    assert named.incumbent_flips == pytest.approx((0.0 + 1.0) / 2)
    with pytest.raises(ArmError, match="old:replica-7: that run's replicas are replica-0, replica-1"):
        compare({"new": runs}, incumbent=(old, "replica-7"))


def test_the_deployed_model_itself_is_not_among_its_retrainings(tmp_path: Path) -> None:
    def run(name: str, share: float, alone: float) -> RunDir:
        models = {"replica-0": (sure(share), sure(share)), "solo-0": (sure(alone), sure(alone))}
        return ended_run(tmp_path, name, models, LABELS)

    runs = [run("old", 0.6, 0.5), run("new", 0.7, 0.55), run("newer", 0.9, 0.55)]
    comparison = compare({"x": runs}, incumbent=(runs[0], None))
    rows = {row.arm: row for row in comparison.rows}
    assert rows["x"].incumbent_mean_abs_difference == pytest.approx((0.1 + 0.3) / 2)
    assert rows["solo"].incumbent_mean_abs_difference == pytest.approx((0.1 + 0.05 + 0.05) / 3)  # all are other models
    assert "replica-0 of old of arm 'x' is of the incumbent's own run: not in churn to it" in comparison.notes


# ---------------------------------------------------------------- differences


def test_differences_are_paired_by_seed_whatever_the_order(tmp_path: Path) -> None:
    solo = one_model_runs(tmp_path, "solo", {1: 0.5, 2: 0.6, 3: 0.8})
    pair = one_model_runs(tmp_path, "pair", {3: 0.9, 1: 0.6, 2: 0.7})
    comparison = compare({"pair": pair, "solo": solo})
    found = {one.metric: one for one in comparison.differences}
    each = np.log([0.5, 0.6, 0.8]) - np.log([0.6, 0.7, 0.9])
    half = 4.302653 * each.std(ddof=1) / np.sqrt(3)  # the 97.5 % quantile of Student's t with 2 degrees of freedom
    interval = found["log_loss"].interval
    assert interval is not None
    assert (interval.mean, interval.low, interval.high) == pytest.approx(
        (each.mean(), each.mean() - half, each.mean() + half), rel=1e-5
    )
    assert (interval.n, found["log_loss"].verdict) == (3, "better")
    accuracy = found["accuracy"]
    assert accuracy.interval is not None
    assert (accuracy.interval.mean, accuracy.verdict) == (pytest.approx(0.5 / 3), "no difference shown")


def test_the_difference_in_churn_is_arm_less_baseline(tmp_path: Path) -> None:
    solo = one_model_runs(tmp_path, "solo", {1: 0.5, 2: 0.6, 3: 0.8})
    pair = one_model_runs(tmp_path, "pair", {1: 0.6, 2: 0.65, 3: 0.68})
    comparison = compare({"solo": solo, "pair": pair})
    difference = next(one for one in comparison.differences if one.metric == "mean_abs_difference")
    assert difference.interval is not None
    mean = (0.05 + 0.08 + 0.03) / 3 - (0.1 + 0.3 + 0.2) / 3
    without = np.array([0.03 - 0.2, 0.08 - 0.3, 0.05 - 0.1])  # one pair is left of each arm
    half = 4.302653 * np.sqrt(2 / 3 * ((without - without.mean()) ** 2).sum())
    assert (difference.interval.mean, difference.interval.low) == pytest.approx((mean, mean - half), rel=1e-5)


def test_seeds_without_partner_are_named_and_do_not_count(tmp_path: Path) -> None:
    solo = one_model_runs(tmp_path, "solo", {1: 0.5, 2: 0.6, 9: 0.99})
    pair = one_model_runs(tmp_path, "pair", {1: 0.6, 2: 0.7, 4: 0.51})
    comparison = compare({"solo": solo, "pair": pair})
    found = {one.metric: one for one in comparison.differences}
    interval = found["log_loss"].interval
    assert interval is not None
    assert interval.mean == pytest.approx(-np.log([0.6, 0.7]).mean() + np.log([0.5, 0.6]).mean())
    assert found["flips"].interval is None  # churn needs three
    assert list(comparison.notes) == [
        "pair: pair-4 (seed 4) without partner in solo, in no difference between the two",
        "solo: solo-9 (seed 9) without partner in pair, in no difference between the two",
        "–: an interval of churn needs three seeds that both arms have; two for pair",
    ]


def test_with_too_few_common_seeds_the_table_says_why_once(tmp_path: Path) -> None:
    solo = one_model_runs(tmp_path, "solo", {1: 0.5})
    pair = one_model_runs(tmp_path, "pair", {1: 0.6})
    text = compare({"solo": solo, "pair": pair}).as_text()
    assert text.count("an interval needs two seeds that both arms have; too few for pair") == 1
    assert text.splitlines()[7].split() == ["pair", "all", "–", "–", "1", "–"]


def test_runs_that_share_a_seed_stand_as_their_mean(tmp_path: Path) -> None:
    solo = one_model_runs(tmp_path, "solo", {1: 0.5, 2: 0.5})
    pair = [*one_model_runs(tmp_path, "pair", {1: 0.6, 2: 0.7}), *one_model_runs(tmp_path, "again", {1: 0.9})]
    comparison = compare({"solo": solo, "pair": pair})
    interval = comparison.differences[0].interval
    assert interval is not None
    assert interval.n == 2
    first, second = -(np.log(0.6) + np.log(0.9)) / 2 + np.log(0.5), -np.log(0.7) + np.log(0.5)
    assert interval.mean == pytest.approx((first + second) / 2)
    assert any(note.startswith("pair: 2 runs have seed 1") for note in comparison.notes)


def test_the_baseline_can_be_chosen(tmp_path: Path) -> None:
    arms = {name: one_model_runs(tmp_path, name, {1: 0.5, 2: 0.6}) for name in ("a", "b")}
    assert compare(arms).baseline == "a"
    assert compare(arms, baseline="b").baseline == "b"
    with pytest.raises(ArmError, match="--baseline c: there is no such arm; arms are a, b"):
        compare(arms, baseline="c")
    with pytest.raises(ArmError, match="--ensemble-of c: there is no such arm; arms are a, b"):
        compare(arms, ensemble_of="c")


# ---------------------------------------------------------------- grouping


def test_runs_are_grouped_by_their_spec_but_for_seed_name_and_labels(tmp_path: Path) -> None:
    specs = [
        small_spec(name="pair", seed=1),
        small_spec(name="solo", method={"kind": "solo"}),
        small_spec(name="pair-again", seed=2, labels={"who": "me"}),
        small_spec(name="pair", seed=3),
    ]
    runs = [new_run(tmp_path, spec, f"r-{i}") for i, spec in enumerate(specs)]
    assert group_by_spec(runs) == {"pair": [runs[0], runs[2], runs[3]], "solo": [runs[1]]}


def test_two_arms_of_one_name_must_be_named(tmp_path: Path) -> None:
    one = new_run(tmp_path, small_spec(), "one")
    other = new_run(tmp_path, small_spec(training={"steps": 13}), "other")
    with pytest.raises(ArmError, match=r"both called 'job' but differ in training\.steps; .* one=one other=other"):
        group_by_spec([one, other])


# ---------------------------------------------------------------- output


def test_json_and_csv_hold_the_same_numbers(tmp_path: Path) -> None:
    solo = one_model_runs(tmp_path, "solo", {1: 0.5, 2: 0.6, 3: 0.8})
    pair = one_model_runs(tmp_path, "pair", {1: 0.6, 2: 0.7, 3: 0.9})
    comparison = compare({"solo": solo, "pair": pair})
    values = json.loads(json.dumps(comparison.as_json(), allow_nan=False))
    assert values["rows"][0]["confidence_gap"] == pytest.approx((0.5 + 0.6 + 0.8) / 3 - (0.5 + 1 + 1) / 3)
    assert [one["run"] for one in values["runs"]] == ["solo-1", "solo-2", "solo-3", "pair-1", "pair-2", "pair-3"]
    lines = list(csv.DictReader(io.StringIO(comparison.as_csv())))
    line = next(line for line in lines if (line["arm"], line["metric"]) == ("pair", "log_loss"))
    difference = next(one for one in values["differences"] if one["metric"] == "log_loss")
    assert float(line["value"]) == values["rows"][1]["log_loss"]
    assert [float(line[key]) for key in ("difference", "low", "high")] == [
        difference["interval"][key] for key in ("mean", "low", "high")
    ]
    assert (line["baseline"], line["seeds"], line["verdict"]) == ("solo", "3", "better")


def test_the_table_has_a_block_of_arms_and_one_of_differences(tmp_path: Path) -> None:
    arms = {name: one_model_runs(tmp_path, name, {1: share, 2: share}) for name, share in [("solo", 0.5), ("b", 0.75)]}
    text = compare(arms).as_text().splitlines()
    assert " ".join(text[0].split()) == "arm runs accuracy log loss ECE churn flips seconds exchanged"
    assert text[3].split() == ["b", "2", "100.00%", "0.2877", "25.00%", "0.00000", "0.00%", "2.0", "200", "B"]
    assert text[5].split() == ["arm", "metric", "minus", "solo", "95", "%", "interval", "seeds", "verdict"]
    assert text[7].split() == ["b", "log", "loss", "-0.4055", "-0.4055", "..", "-0.4055", "2", "better"]


# ---------------------------------------------------------------- refusals


def test_runs_tested_on_different_samples_cannot_be_compared(tmp_path: Path) -> None:
    one = ended_run(tmp_path, "one", {"replica-0": (SURE, SURE)}, LABELS)
    other = ended_run(tmp_path, "other", {"replica-0": (SURE, SURE)}, LABELS, first_id=1)
    relabelled = ended_run(tmp_path, "relabelled", {"replica-0": (SURE, SURE)}, [1, 1])
    for second in (other, relabelled):
        with pytest.raises(NothingToCompare, match="different samples, labels or classes"):
            compare({"a": [one], "b": [second]})


def test_a_run_counts_once_and_an_arm_has_runs(tmp_path: Path) -> None:
    run = ended_run(tmp_path, "one", {"replica-0": (SURE, SURE)}, LABELS)
    with pytest.raises(ArmError, match="arm 'a' names one twice"):
        compare({"a": [run, run]})
    with pytest.raises(ArmError, match="arm 'a' has no runs"):
        compare({"a": []})


def test_what_has_not_ended_cannot_be_compared(tmp_path: Path) -> None:
    run = new_run(tmp_path, small_spec())
    with pytest.raises(NothingToCompare, match="job job has not ended"):
        compare({"solo": [run]})
    failed = attempt_result("job", 1, {}, started_at=0.0, ended_at=1.0, reason=Reason("no_capacity", "no room for it"))
    write_json(run.result(1), failed)
    with pytest.raises(NothingToCompare, match="ended as failed; only runs that succeeded"):
        compare({"solo": [run]})


@pytest.mark.parametrize(
    ("outcomes", "outcome", "degraded"),
    [
        (["succeeded", "succeeded"], "succeeded", False),
        (["succeeded", "failed"], "succeeded", True),
        (["failed", "failed"], "failed", False),
        (["succeeded", "cancelled"], "cancelled", False),
        (["failed", "cancelled"], "cancelled", False),
    ],
)
def test_how_an_attempt_ended(outcomes: list[str], outcome: str, degraded: bool) -> None:
    replicas = {
        f"replica-{i}": ReplicaOutcome(o, error="boom" if o == "failed" else None) for i, o in enumerate(outcomes)
    }
    result = attempt_result("job", 1, replicas, started_at=0.0, ended_at=1.0)
    assert (result["outcome"], result["degraded"]) == (outcome, degraded)
    assert (result["reason"] is not None) == ("failed" in outcomes)
    given = attempt_result("job", 1, replicas, started_at=0.0, ended_at=1.0, reason=Reason("max_runtime", "too long"))
    assert given["outcome"] == "failed"
    assert given["reason"]["code"] == "max_runtime"
