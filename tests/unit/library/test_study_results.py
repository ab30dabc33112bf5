"""What is kept of a study: small files that stand for runs which are gone, and what it took arms to be as good."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pyarrow as pa
import pytest

from codistill.compare import NothingToCompare
from codistill.environment import write_environment
from codistill.records import METRICS
from codistill.run_dir import RunDir, StorageError, read_json, write_json
from codistill.study import Trial, trials_of
from codistill.study.arms import ArmResult, result_of
from codistill.study.curves import Point, trained_seconds
from codistill.study.origin import origins_of
from codistill.study.reach import first_at, reach_of
from codistill.study.report import report_on
from codistill.study.results import keep, kept_result
from codistill.study.spec import parse_study
from codistill.study.text import as_text
from codistill.study.trials import by_arm
from tests.ended_runs import ended_run
from tests.support import SMALL

STUDY = {
    "name": "tiny",
    "seeds": [1, 2, 3],
    "base": {**SMALL, "method": {"kind": "solo"}, "replicas": {"count": 2}},
    "arms": {"solo": {}, "pair": {"method": {"kind": "codistillation"}, "controls": ["solo"]}},
    "ensemble_of": ["solo"],
}
FACTS = {
    "unit": "samples",
    "units_per_sample": 1,
    "phases": {"train": {"steps": 12, "flops_per_step": 10.0, "teachers_flops_per_step": 1.0}},
}


def sure(share: float) -> list[list[float]]:
    return [[share, 1 - share], [1 - share, share]]


def ended(storage: Path) -> dict[str, tuple[list[Trial], ArmResult]]:
    """Both arms, their runs in `storage`; those of `pair` have a control beside them."""
    trials = trials_of(parse_study(STUDY))
    for trial in trials:
        best = 0.6 + trial.seed / 20 + (0.02 * trial.seed if trial.arm == "pair" else 0.0)
        splits = {f"replica-{i}": (sure(best - i / 10), sure(best - i / 10)) for i in range(2)}
        if trial.arm == "pair":
            splits["solo-0"] = (sure(0.55), sure(0.55))
        ended_run(storage, trial.job_id, splits, [0, 1], seed=trial.seed, spec=trial.spec)
    by_arm = {arm: [trial for trial in trials if trial.arm == arm] for arm in STUDY["arms"]}
    results = {arm: result_of(own, storage, lambda spec: FACTS, ensembled=arm == "solo") for arm, own in by_arm.items()}
    return {arm: (by_arm[arm], result) for arm, result in results.items() if result is not None}


def test_a_report_on_kept_results_is_that_on_the_runs_which_are_gone(tmp_path: Path) -> None:
    storage, kept = tmp_path / "runs", tmp_path / "kept"
    storage.mkdir()
    found = ended(storage)
    for arm, (trials, result) in found.items():
        assert keep(kept, trials, result, ensembled=arm == "solo").name == f"{arm}.json"
    shutil.rmtree(storage)
    before = report_on("tiny", [result for _, result in found.values()], baseline="solo")
    read = [kept_result(kept, trials, ensembled=arm == "solo") for arm, (trials, _) in found.items()]
    after = report_on("tiny", [result for result in read if result is not None], baseline="solo")
    assert [row.arm for row in after.comparison.rows] == ["solo", "pair", "pair/solo", "ensemble of 2 solo"]
    assert as_text(after) == as_text(before)
    assert after.as_json() == before.as_json()
    assert after.specs == before.specs


def test_what_was_not_kept_is_none_and_what_is_of_other_jobs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    found = ended(tmp_path / "runs")
    trials, result = found["pair"]
    assert kept_result(tmp_path, trials, ensembled=False) is None
    path = keep(tmp_path, trials, result, ensembled=False)
    other = parse_study({**STUDY, "base": {**STUDY["base"], "data": {"kind": "disjoint"}}})  # type: ignore[dict-item]
    changed = [trial for trial in trials_of(other) if trial.arm == "pair"]
    for refused, ensembled in ((changed, False), (trials[:2], False), (trials, True)):
        with pytest.raises(StorageError, match=r"pair\.json was made from other jobs than arm 'pair' has now"):
            kept_result(tmp_path, refused, ensembled=ensembled)
    path.write_text("{}")
    with pytest.raises(StorageError, match=r"pair\.json holds no result of an arm .*; remove it"):
        kept_result(tmp_path, trials, ensembled=False)


def test_arms_that_were_tested_on_other_samples_are_not_set_side_by_side(tmp_path: Path) -> None:
    """As many samples and classes, and other labels: kept results know no more of each other than a digest."""
    trials = {arm: own[:1] for arm, own in by_arm(trials_of(parse_study({**STUDY, "ensemble_of": []}))).items()}
    results: list[ArmResult] = []
    for labels, (_, own) in zip(([0, 1], [1, 0]), trials.items(), strict=True):
        splits = {f"replica-{i}": (sure(0.6), sure(0.6)) for i in range(2)}
        ended_run(tmp_path, own[0].job_id, splits, labels, seed=own[0].seed, spec=own[0].spec)
        result = result_of(own, tmp_path, lambda spec: FACTS, ensembled=False)
        assert result is not None
        results.append(result)
    with pytest.raises(NothingToCompare, match="arms 'pair' and 'solo' were tested on different samples"):
        report_on("tiny", results, baseline="solo")


# ---------------------------------------------------------------- what it took


def test_seconds_of_training_leave_out_the_pause_of_an_interruption() -> None:
    """Step 2 was evaluated before a pause of 600 s, step 4 after it; another attempt begins after 1,000 s more."""
    rows = [
        (1, 0, 0.0, "train/loss", 1),
        (1, 0, 5.0, "eval/log_loss", 2),
        (1, 1, 605.0, "train/loss", 3),
        (1, 1, 608.0, "eval/log_loss", 4),
        (2, 0, 1608.0, "train/loss", 5),
        (2, 0, 1612.0, "eval/log_loss", 6),
    ]
    keys = ("fence", "incarnation", "time", "name", "step")
    columns = dict(zip(keys, map(list, zip(*rows, strict=True)), strict=True))
    columns["time"] = [datetime.fromtimestamp(at, UTC) for at in columns["time"]]
    table = pa.table({**columns, "value": [1.0] * len(rows)}).select(METRICS.names).cast(METRICS)
    assert trained_seconds(table, [2, 4, 6]) == [5.0, 8.0, 12.0]
    assert trained_seconds(table.slice(0, 0), []) == []


# ---------------------------------------------------------------- as good as the baseline


def curve(*points: tuple[int, float], flops_per_step: float = 2.0) -> tuple[Point, ...]:
    return tuple(Point(step, loss, step / 10, 3.0 * step, flops_per_step * step, 1) for step, loss in points)


def test_where_a_curve_is_as_low_lies_on_the_line_between_two_points() -> None:
    losses = curve((10, 1.0), (20, 0.8), (30, 0.4), (40, 0.6), (50, 0.3))
    assert first_at(losses, 0.5) == Point(28, 0.5, pytest.approx(2.75), 82.5, 55.0, 1)
    assert first_at(losses, 0.4) == Point(30, 0.4, 3.0, 90.0, 60.0, 1)
    assert first_at(losses, 1.5) == losses[0]
    assert first_at(losses, 0.2) is None


def test_reach_is_paired_by_seed_and_counts_who_never_got_there() -> None:
    """Of seed 1 the baseline is best at step 40, of seed 2 at 20; the arm needs 30 and 10 and, of seed 3, fails."""
    base = {
        1: curve((20, 0.9), (40, 0.5), (60, 0.7)),
        2: curve((20, 0.5), (40, 0.5)),
        3: curve((20, 0.5)),
        4: curve((20, 0.5)),
    }
    arm = {
        1: curve((20, 0.7), (40, 0.3), flops_per_step=4.0),
        2: curve((10, 0.5), flops_per_step=4.0),
        3: curve((40, 0.6)),
    }
    reach = reach_of(arm, base)
    assert (reach.seeds, reach.reached) == (3, 2)
    assert reach.steps == pytest.approx((30 / 40 + 10 / 20) / 2)
    assert reach.flops == pytest.approx((120 / 80 + 40 / 40) / 2)
    assert reach.received_bytes == pytest.approx((90 + 30) / 2)
    assert reach.steps_interval is None  # seed 3, in which it failed, would be missing from it
    both = reach_of({seed: arm[seed] for seed in (1, 2)}, base)
    # Student's t with one degree of freedom: 12.706 times the standard error, which is half the distance of the two.
    assert both.steps_interval is not None
    assert both.steps_interval.high - both.steps_interval.mean == pytest.approx(12.706 * 0.125, rel=1e-4)


def test_operations_that_are_not_known_are_none() -> None:
    reach = reach_of({1: curve((20, 0.4), flops_per_step=math.nan)}, {1: curve((20, 0.5), flops_per_step=math.nan)})
    assert (reach.reached, reach.steps, reach.flops) == (1, 1.0, None)


def test_an_arm_that_is_never_as_good_has_no_figures(tmp_path: Path) -> None:
    reach = reach_of({1: curve((20, 0.9))}, {1: curve((20, 0.5))})
    assert (reach.seeds, reach.reached, reach.steps, reach.flops) == (1, 0, None, None)


@pytest.mark.parametrize(
    ("third", "line"),
    [
        (((20, 0.6), (40, 0.2)), ["pair", "3", "of", "3", "0.62", "0.62", "..", "0.62", "0.62", "75", "B"]),
        (((40, 0.55),), ["pair", "2", "of", "3", "0.62", "–", "0.62", "75", "B"]),
    ],
)
def test_of_the_text_each_line_says_how_many_got_there(
    tmp_path: Path, third: tuple[tuple[int, float], ...], line: list[str]
) -> None:
    (tmp_path / "runs").mkdir()
    found = ended(tmp_path / "runs")
    results: list[ArmResult] = []
    for arm, (_, result) in found.items():
        curves = {seed: curve((20, 0.6), (40, 0.5 if arm == "solo" else 0.2)) for seed in (1, 2, 3)}
        results.append(replace(result, curves=curves if arm == "solo" else {**curves, 3: curve(*third)}))
    text = as_text(report_on("tiny", results, baseline="solo"))
    head, said = text.partition("to the lowest log loss of solo on validation")[2].splitlines()[1::2][:2]
    assert head.split()[:5] == ["arm", "got", "there", "steps", "95"]
    assert said.split() == line


# ---------------------------------------------------------------- what made it


def test_a_report_says_what_its_runs_were_made_with_each_once(tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    storage.mkdir()
    found = ended(storage)
    assert origins_of(RunDir(storage, trial.job_id) for trial in found["solo"][0]) == ()
    assert "made with" not in as_text(report_on("tiny", [found["solo"][1]], baseline="solo"))
    (first, *others), _ = found["solo"]
    path = write_environment(RunDir(storage, first.job_id), 1, first.spec, data_digests={})
    written = read_json(path)
    assert written is not None
    for trial, torch in zip(others, ("1.0", written["versions"]["torch"]), strict=True):
        other = written | {"versions": written["versions"] | {"torch": torch}}
        write_json(RunDir(storage, trial.job_id).attempt(1) / path.name, other)
    result = result_of(found["solo"][0], storage, lambda spec: FACTS, ensembled=True)
    assert result is not None
    assert [one.torch for one in result.origins] == [metadata.version("torch"), "1.0"]
    assert result.origins[0].cores == os.cpu_count()
    report = report_on("tiny", [result, replace(found["pair"][1], origins=result.origins[1:])], baseline="solo")
    assert as_text(report).count("torch 1.0, on ") == 1
    assert report.as_json()["origins"][1]["torch"] == "1.0"


def test_a_result_that_was_kept_without_its_origin_is_read(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    trials, result = ended(tmp_path / "runs")["pair"]
    path = keep(tmp_path, trials, result, ensembled=False)
    written = path.read_text()
    held = json.loads(written)
    assert held["result"].pop("origins") == []
    path.write_text(json.dumps(held))
    read = kept_result(tmp_path, trials, ensembled=False)
    assert read is not None
    assert keep(tmp_path, trials, read, ensembled=False).read_text() == written
