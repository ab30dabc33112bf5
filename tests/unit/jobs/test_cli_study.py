"""`codistill study`: refusals before anything is trained, and a report of what is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from codistill.run_dir import RunDir
from codistill.spec import JobSpec
from codistill.study import load_study, trials_of
from jobs.cli import ray_job, retry
from jobs.cli import study as verb
from jobs.cli.exits import Exit
from jobs.client import Client, RemoteJob, ServiceRefused
from jobs.status import State
from tests.ended_runs import ended_run
from tests.support import SMALL
from tests.unit.jobs.conftest import Call

PROBABILITIES = [[0.8, 0.2], [0.2, 0.8]]


class Facts:
    """In the place of the process that has torch."""

    def __call__(self, spec: JobSpec) -> Mapping[str, Any]:
        teachers = 3.0 if spec.exchanges else 0.0
        phase = {"steps": spec.training.steps, "flops_per_step": 2.0, "teachers_flops_per_step": teachers}
        return {"unit": "samples", "units_per_sample": 1, "phases": {"train": phase}}

    def close(self) -> None: ...


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(verb, "_Facts", Facts)
    arms = {"solo": {"replicas": {"count": 1}}, "pair": {"method": {"kind": "codistillation", "burn_in_steps": 0}}}
    study = {"name": "tiny", "seeds": [1], "base": {**SMALL, "method": {"kind": "solo"}}, "arms": arms}
    path = tmp_path / "study.json"
    path.write_text(json.dumps(study))
    return path


def test_arms_not_given_the_same_are_refused_before_anything_is_trained(file: Path, call_at_home: Call) -> None:
    code, out, error = call_at_home("study", str(file))
    assert (code, out) == (Exit.USAGE, "")
    assert "pair: 2.00 x the samples, 5.00 x the operations" in error
    assert "set unequal = 'name'" in error


def test_a_report_goes_out_alone_and_says_what_is_missing(file: Path, tmp_path: Path, call_at_home: Call) -> None:
    value = json.loads(file.read_text())
    file.write_text(json.dumps({**value, "unequal": "name"}))
    trials = trials_of(load_study(file))
    runs = tmp_path / "runs"
    ended_run(runs, "tiny-solo-1", {"replica-0": (PROBABILITIES, PROBABILITIES)}, [0, 1], spec=trials[0].spec)
    code, out, error = call_at_home("study", str(file), "--only-report", "--storage", str(runs), "-o", "json")
    assert code == Exit.JOB_NOT_FINISHED
    report = json.loads(out)
    assert report["missing"] == ["tiny-pair-1"]
    assert [row["arm"] for row in report["comparison"]["rows"]] == ["solo"]
    assert "not given what solo is: pair" in error


def test_jobs_are_trained_in_one_place_that_there_is(file: Path, tmp_path: Path, call_at_home: Call) -> None:
    value = json.loads(file.read_text())
    file.write_text(json.dumps({**value, "unequal": "name"}))
    for words, why in ((("--submit", "--on", "auto"), "give one of them"), (("--on", "nowhere"), "use auto, or")):
        code, _, error = call_at_home("study", str(file), *words)
        assert (code, why in error) == (Exit.USAGE, True)
    assert not list((tmp_path / "home").rglob("spec.json"))


def test_jobs_go_one_by_one_to_the_ray_that_is_named_and_print_nothing_into_the_report(
    file: Path, tmp_path: Path, call_at_home: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, int]] = []

    def as_ray_job(address: str, spec: JobSpec, run: RunDir, fence: int) -> int:
        print(f"{spec.name} is submitted")
        asked.append((address, run.job_id, fence))
        return 0 if len(asked) < 2 else Exit.JOB_FAILED

    monkeypatch.setattr(ray_job, "run_as_ray_job", as_ray_job)
    value = json.loads(file.read_text())
    file.write_text(json.dumps({**value, "unequal": "name", "seeds": [1, 2]}))
    words = ("--on", "http://head:8265", "--storage", str(tmp_path))
    code, out, error = call_at_home("study", str(file), *words)
    assert (code, out) == (Exit.JOB_FAILED, "")
    assert asked == [("http://head:8265", f"tiny-{arm}-1", 1) for arm in ("solo", "pair")]
    assert "tiny-pair-1 is submitted" in error


def test_submitting_waits_until_the_service_takes_more(
    file: Path, call_at_home: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_often = ServiceRefused(429, "too_many_requests", "this token asks too often; wait 6 s", retry_after_s=6.0)
    full = ServiceRefused(429, "queue_full", "100 jobs of ann wait; wait, or cancel one", retry_after_s=10.0)
    answers: list[Exception | None] = [None, too_often, None, too_often, full, full, None]
    submitted: list[str] = []
    slept: list[float] = []

    def submit(_self: Client, spec: JobSpec, *, key: str) -> RemoteJob:
        refused = answers.pop(0) if answers else ServiceRefused(503, "store_unavailable", "the store does not answer")
        if refused is not None:
            raise refused
        submitted.append(key)
        return RemoteJob(f"job-{len(submitted)}", State.QUEUED, None, {})

    monkeypatch.setattr(Client, "submit", submit)
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    value = json.loads(file.read_text())
    file.write_text(json.dumps({**value, "unequal": "name", "seeds": [1, 2]}))
    code, out, error = call_at_home("study", str(file), "--submit")
    assert submitted == ["study/tiny-solo-1", "study/tiny-pair-1", "study/tiny-solo-2"]
    assert slept == [6.0, 6.0, 10.0, 10.0]
    assert (error.count("asks too often"), error.count("100 jobs of ann wait")) == (1, 1)
    assert (code, out.split()) == (Exit.UNAVAILABLE, ["job-1", "job-2", "job-3"]), "what names no time is told at once"


def test_a_place_that_is_not_there_is_refused_first(file: Path, tmp_path: Path, call_at_home: Call) -> None:
    code, _, error = call_at_home("study", str(file), "--html", str(tmp_path / "none" / "r.html"))
    assert code == Exit.USAGE
    assert "the directory does not exist" in error


def test_what_is_kept_of_arms_outlives_their_runs(file: Path, tmp_path: Path, call_at_home: Call) -> None:
    value = json.loads(file.read_text())
    file.write_text(json.dumps({**value, "unequal": "name"}))
    runs, results = tmp_path / "runs", tmp_path / "results"
    for trial in trials_of(load_study(file)):
        splits = {f"replica-{i}": (PROBABILITIES, PROBABILITIES) for i in range(trial.spec.replicas.count)}
        ended_run(runs, trial.job_id, splits, [0, 1], spec=trial.spec)
    words = ("study", str(file), "--storage", str(runs), "--results", str(results))
    code, first, error = call_at_home(*words)
    assert code == Exit.DONE
    assert f"the result of pair is in {results / 'pair.json'}" in error
    shutil.rmtree(runs)
    code, again, error = call_at_home(*words)
    assert (code, again) == (Exit.DONE, first)
    assert f"results of 2 of 2 arms are in {results}" in error
    assert "job 1 of" not in error
    (results / "solo.json").unlink()
    code, _, error = call_at_home(*words)
    assert code == Exit.USAGE
    assert f"storage {runs} does not exist" in error
