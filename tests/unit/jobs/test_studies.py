"""Studies over the real routes: found by labels, told to their owner alone, reported as far as jobs have ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from codistill.capacity import Node
from codistill.spec import JobSpec
from codistill.study import Trial, trials_of
from codistill.study.spec import parse_study
from jobs.callers import LOCAL, Caller, Scope
from jobs.door import DoorRules
from jobs.job import Job
from jobs.routes import build_api
from jobs.routes.backend import Backend
from jobs.store import Store
from jobs.store_terms import Submission
from tests.ended_runs import ended_run
from tests.stores import new_store
from tests.support import SMALL

LABELS = [0, 1]
STUDY = {
    "name": "tiny",
    "seeds": [1, 2],
    "base": {**SMALL, "method": {"kind": "solo"}, "replicas": {"count": 1}},
    "arms": {"solo": {}, "smooth": {"method": {"kind": "label_smoothing"}}},
    "grid": {"smooth": {"method.epsilon": [0.1, 0.2]}},
}


def sure(share: float) -> list[list[float]]:
    return [[share, 1 - share], [1 - share, share]]


class Offering:
    """A service with tokens for ann and bob, that knows what a spec takes after having been asked once."""

    def __init__(self, root: Path) -> None:
        self.storage = root / "runs"
        self.storage.mkdir()
        self.store = Store.open(new_store(root))
        self.asked: list[str] = []
        backend = Backend(
            self.store, self.storage, lambda: [Node(8.0, 0.0)], DoorRules(needs_token=True), facts=self.facts
        )
        self.http = TestClient(build_api(backend), "http://127.0.0.1")
        self.tokens = {
            who: self.store.accounts.create(who, Scope.READ, lifetime_s=None, by=LOCAL)[1] for who in ("ann", "bob")
        }

    def facts(self, spec: JobSpec) -> Mapping[str, Any] | str:
        self.asked.append(spec.method.kind)
        if len(self.asked) == 1:
            return "still starting"
        phase = {"steps": spec.training.steps, "flops_per_step": 2.0, "teachers_flops_per_step": 0.0}
        return {"unit": "samples", "units_per_sample": 1, "phases": {"train": phase}}

    def ask(self, path: str, who: str = "ann", status: int = 200) -> Any:
        answer = self.http.get(f"/api/v1/{path}", headers={"Authorization": f"Bearer {self.tokens[who]}"})
        assert answer.status_code == status, answer.text
        return answer.json()

    def submit(self, trial: Trial) -> Job:
        return self.store.submit(Submission(trial.spec, Caller("ann", Scope.WRITE)))

    def end(self, job: Job, validation: float, test: float) -> None:
        splits = {"replica-0": (sure(validation), sure(test))}
        ended_run(self.storage, job.id, splits, LABELS, seed=job.spec.seed, spec=job.spec)


@pytest.fixture
def service(tmp_path: Path) -> Offering:
    return Offering(tmp_path)


def test_a_study_is_seen_from_its_first_job_to_its_report(service: Offering) -> None:
    trials = trials_of(parse_study(STUDY))
    jobs = [service.submit(trial) for trial in trials]
    assert service.ask("studies")["items"] == [{"name": "tiny", "jobs": 6, "ended": 0}]
    early = service.ask("studies/tiny")
    assert [(one["arm"], one["choice"], one["seed"]) for one in early["jobs"]] == [
        (trial.arm, trial.choice, trial.seed) for trial in trials
    ]
    assert early["report"] is None
    assert "no job of the baseline 'solo' has ended well" in early["why"]

    quality = {("solo", 0): (0.6, 0.6), ("smooth", 0): (0.7, 0.9), ("smooth", 1): (0.8, 0.7)}
    for trial, job in zip(trials, jobs, strict=True):
        service.end(job, *quality[trial.arm, trial.choice])
    report = service.ask("studies/tiny")["report"]
    assert report["chosen"] == {"smooth": {"method.epsilon": 0.2}}
    assert [one["settings"] for one in report["tried"]["smooth"]] == [{"method.epsilon": 0.1}, {"method.epsilon": 0.2}]
    rows = {row["arm"]: row for row in report["comparison"]["rows"]}
    assert rows["smooth"]["log_loss"] == pytest.approx(0.3566749), "the test set is looked at for the chosen alone"
    assert report["missing"] == []
    against = service.ask("studies/tiny?baseline=smooth")["report"]
    assert against["comparison"]["baseline"] == "smooth"


def test_a_report_is_kept_once_everything_is_known(service: Offering) -> None:
    """What an arm takes was not known at first: that report is not the one to keep."""
    trials = [trial for trial in trials_of(parse_study({**STUDY, "grid": {}})) if trial.arm == "solo"]
    for trial in trials:
        service.end(service.submit(trial), 0.6, 0.6)
    first, second, third = (service.ask("studies/tiny")["report"] for _ in range(3))
    assert (first["ratios"], second["ratios"]["solo"]["flops"]) == ({}, 1.0)
    assert third == second
    assert service.asked == ["solo", "solo"]
    service.submit(trials[0])
    assert service.ask("studies/tiny")["report"]["missing"], "the newer job of a seed is the one that counts"


def test_nobody_sees_the_study_of_another(service: Offering) -> None:
    service.submit(trials_of(parse_study(STUDY))[0])
    assert service.ask("studies", "bob")["items"] == []
    refused = service.ask("studies/tiny", "bob", status=404)
    assert refused["detail"] == service.ask("studies/none", "bob", status=404)["detail"]


def test_an_arm_that_is_not_there_is_refused_by_name(service: Offering) -> None:
    service.submit(trials_of(parse_study(STUDY))[0])
    refused = service.ask("studies/tiny?baseline=duo", status=422)
    assert refused["detail"] == "there is no arm 'duo' in it; choose one of solo"


def test_labels_that_make_no_study_are_left_alone(service: Offering) -> None:
    trial = trials_of(parse_study(STUDY))[0]
    spec = trial.spec.model_copy(update={"labels": {"study": "mine", "arm": "a", "choice": "x"}})
    service.store.submit(Submission(spec, Caller("ann", Scope.WRITE)))
    assert service.ask("studies")["items"] == []
    service.ask("studies/mine", status=404)
