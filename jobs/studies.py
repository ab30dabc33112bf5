"""Studies in a service: nothing but jobs whose labels say which study, arm and combination they are of."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any

from codistill.compare import ArmError, NothingToCompare
from codistill.lineage import changed
from codistill.spec import JobSpec
from codistill.study.arms import Facts
from codistill.study.report import report_of
from codistill.study.trials import ARM_LABEL, CHOICE_LABEL, STUDY_LABEL, Trial
from jobs.job import Job

MOST_JOBS = 2048
"""Of a study that are looked at."""
FACTS_S = 3.0
"""That a request waits for facts of all arms; those that come later are for whoever asks next."""
KEPT = 16
"""Reports that are kept."""
NOT_SETTINGS = {"name", "seed", "labels"}


def is_of_a_study(job: Job) -> bool:
    """Whether its labels say of which, by name, arm and number."""
    labels = job.labels
    return STUDY_LABEL in labels and ARM_LABEL in labels and labels.get(CHOICE_LABEL, "").isdecimal()


def trials_in(jobs: Sequence[Job]) -> list[tuple[Trial, Job]]:
    """Of jobs of one study, newest first, the newest for each arm, combination and seed, in the order of submission."""
    newest: dict[tuple[str, int, int], Job] = {}
    for job in jobs:
        newest.setdefault((job.labels[ARM_LABEL], int(job.labels[CHOICE_LABEL]), job.spec.seed), job)
    found = sorted(newest.items(), key=lambda item: item[1].seq)
    settings = _settings([(arm, choice, job.spec) for (arm, choice, _), job in found])
    return [
        (Trial(arm, choice, settings[arm][choice], seed, job.spec, job.id), job) for (arm, choice, seed), job in found
    ]


def _settings(known: Sequence[tuple[str, int, JobSpec]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Of each arm and combination, what differs between the combinations of the arm."""
    firsts: dict[str, dict[int, JobSpec]] = {}
    for arm, choice, spec in known:
        firsts.setdefault(arm, {}).setdefault(choice, spec)
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for arm, by_choice in firsts.items():
        reference = next(iter(by_choice.values()))
        keys = [key for spec in by_choice.values() for key in changed(reference, spec) if key not in NOT_SETTINGS]
        values = {choice: spec.model_dump(mode="json") for choice, spec in by_choice.items()}
        found[arm] = {choice: {key: _at(value, key) for key in dict.fromkeys(keys)} for choice, value in values.items()}
    return found


def _at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


@dataclass
class Reports:
    """Reports of studies, kept while no further job of them has ended."""

    storage: Path
    facts: Facts
    _kept: OrderedDict[Any, dict[str, Any]] = field(default_factory=OrderedDict[Any, dict[str, Any]])
    _lock: Lock = field(default_factory=Lock)

    def of(self, name: str, trials: Sequence[tuple[Trial, Job]], baseline: str) -> dict[str, Any] | str:
        """As JSON; or in one sentence why there is none yet."""
        key = (name, baseline, tuple((trial.job_id, job.fence, job.state) for trial, job in trials))
        with self._lock:
            if key in self._kept:
                return self._kept[key]
        give_up, late = monotonic() + FACTS_S, False

        def facts(spec: JobSpec) -> Mapping[str, Any] | str:
            nonlocal late
            answer = "ask again" if monotonic() > give_up else self.facts(spec)
            late |= isinstance(answer, str)
            return answer

        try:
            report = report_of(name, [trial for trial, _ in trials], self.storage, facts, baseline=baseline).as_json()
        except (NothingToCompare, ArmError) as error:
            return str(error)
        if not late:
            with self._lock:
                self._kept[key] = report
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return report
