"""The verb `study`: arms x seeds as jobs, here or in a service, and what they show."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.cli.exits import CommandError, Exit
from jobs.cli.local import Place, Storage, check_place, storage_or_default, train_at
from jobs.cli.output import Format, emit, emit_data, plain, say, service_url
from jobs.cli.retry import Retry
from jobs.cli.service import Url, connect

if TYPE_CHECKING:
    from codistill.spec import JobSpec
    from codistill.study import Study, Trial
    from codistill.study.arms import ArmResult

FACTS_LIMIT_S = 120.0


def study(
    file: Annotated[
        Path, typer.Argument(metavar="STUDY", help="A .toml, .yaml or .json file: name, seeds, base, arms")
    ],
    storage: Storage = None,
    on: Place = None,
    submit: Annotated[
        bool, typer.Option("--submit", help="Give the jobs to the service instead of training them here")
    ] = False,
    only_report: Annotated[bool, typer.Option("--only-report", help="Train nothing; what is there so far")] = False,
    results: Annotated[
        Path | None,
        typer.Option(
            help="Keep the figures of every arm that is through in this directory, a small file each; an arm that has"
            " one is not trained again, whatever has become of its runs",
            metavar="DIR",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write the report, with plots, into this .html file", metavar="FILE")
    ] = None,
    output: Annotated[Format, typer.Option("-o", "--output", help="How the report is printed")] = Format.TABLE,
    url: Url = None,
) -> int:
    """Train every arm of a study with every seed, and set them side by side. The same command again goes on where it
    stopped."""
    from codistill.study import load_study, trials_of

    if submit and on is not None:
        raise CommandError(f"--submit and --on {on} are two places to train; give one of them", Exit.USAGE)
    asked = load_study(file)
    trials = trials_of(asked)
    _check_html(html)
    facts = _Facts()
    try:
        _be_fair(asked, trials, facts)
        if submit:
            return _submitted(trials, url)
        work = _Work.of(asked, trials, storage_or_default(storage), results, facts)
        if not only_report and (code := work.train(on)) != Exit.DONE:
            return code
        return _report(work, html, output)
    finally:
        facts.close()


@dataclass(frozen=True)
class _Work:
    """A study, what is there of it, and where."""

    study: Study
    trials: list[Trial]
    arms: dict[str, list[Trial]]
    storage: Path
    results: Path | None
    facts: _Facts
    kept: dict[str, ArmResult]
    """Of arms whose runs are needed no more."""

    @staticmethod
    def of(study: Study, trials: list[Trial], storage: Path, results: Path | None, facts: _Facts) -> _Work:
        from codistill.study.results import kept_results
        from codistill.study.trials import by_arm

        arms = by_arm(trials)
        kept = {} if results is None else kept_results(results, arms, ensemble_of=study.ensemble_of)
        return _Work(study, trials, arms, storage, results, facts, kept)

    def train(self, on: str | None) -> int:
        """What is missing, where `--on` says. Without a place for results seed after seed, so that all arms can be
        compared early; else arm after arm, so that results come early."""
        from codistill.study.results import keep
        from codistill.study.run import train_missing

        missing = [trial for trial in self.trials if trial.arm not in self.kept]
        if missing and not self.storage.is_dir():
            message = f"storage {self.storage} does not exist; create it, or name another directory"
            raise CommandError(message, Exit.USAGE)
        check_place(on, [trial.spec for trial in missing], verb="study")
        if self.kept:
            say(f"results of {len(self.kept)} of {len(self.arms)} arms are in {self.results}")
        parts = [missing] if self.results is None else [own for arm, own in self.arms.items() if arm not in self.kept]
        for part in parts:
            # What the jobs print is no part of the report.
            code = train_missing(part, self.storage, say=say, train=partial(train_at, on, stdout=sys.stderr))
            if code != Exit.DONE:
                return code
            arm = part[0].arm
            if self.results is not None and (result := self._result(arm)) is not None:
                path = keep(self.results, part, result, ensembled=arm in self.study.ensemble_of)
                say(f"the result of {arm} is in {path}")
                self.kept[arm] = result
        return Exit.DONE

    def found(self) -> list[ArmResult]:
        """Of every arm of which something is there."""
        both = [self.kept.get(arm) or self._result(arm) for arm in self.arms]
        return [result for result in both if result is not None]

    def missing(self) -> list[str]:
        """Ids of jobs that have not ended well, of arms without a kept result."""
        from codistill.study.arms import not_ended_well

        needed = [trial for arm, own in self.arms.items() if arm not in self.kept for trial in own]
        return not_ended_well(needed, self.storage)

    def _result(self, arm: str) -> ArmResult | None:
        from codistill.study.arms import result_of

        return result_of(self.arms[arm], self.storage, self.facts, ensembled=arm in self.study.ensemble_of)


class _Facts:
    """What `codistill.describe` says of a spec, from one process that has torch."""

    def __init__(self) -> None:
        from jobs.describer import Describer

        self._describer = Describer({}, patience_s=FACTS_LIMIT_S)

    def __call__(self, spec: JobSpec) -> Mapping[str, Any]:
        found = self._describer.facts(spec, FACTS_LIMIT_S)
        if isinstance(found, str):
            message = f"what {spec.name} takes cannot be told: {found}; try codistill validate --facts"
            raise CommandError(message, Exit.UNAVAILABLE)
        return found

    def close(self) -> None:
        self._describer.close()


def _be_fair(asked: Study, trials: list[Trial], facts: _Facts) -> None:
    """Raise `CommandError` for arms that are not given the same, unless the study says that it knows."""
    from codistill.study.effort import effort_of, ratios

    firsts = {trial.arm: trial.spec for trial in reversed(trials)}
    found = ratios({arm: effort_of(spec, facts(spec)) for arm, spec in firsts.items()}, asked.set_against)
    unequal = [one for one in found.values() if not one.is_equal]
    if unequal and asked.unequal == "refuse":
        raise CommandError(
            f"arms are not given what '{asked.set_against}' is ({'; '.join(map(str, unequal))}); give them as much"
            " (training.steps, replicas.count), or set unequal = 'name', which says so beside the figures",
            Exit.USAGE,
        )
    for one in unequal:
        say(f"not given what {asked.set_against} is: {one}")


def _submitted(trials: list[Trial], url: str | None) -> int:
    """Every job under a key of its own: those that are there already stay as they are."""
    retry = Retry()
    with connect(url) as client:
        for trial in trials:
            emit(retry(partial(client.submit, trial.spec, key=f"study/{trial.job_id}")).id)
    study_name = trials[0].spec.labels["study"]
    say(f"next: codistill list --label study={study_name} | the page: {url or service_url()}/studies/{study_name}")
    return Exit.DONE


def _report(work: _Work, html: Path | None, output: Format) -> int:
    from codistill.compare import NothingToCompare
    from codistill.study.report import report_on
    from codistill.study.text import as_text

    try:
        report = report_on(work.study.name, work.found(), baseline=work.study.set_against, missing=work.missing())
    except NothingToCompare as error:
        raise CommandError(str(error), Exit.JOB_NOT_FINISHED) from None
    if output is Format.TABLE:
        emit("\n".join(map(plain, as_text(report).splitlines())))
    else:
        emit_data(json.loads(json.dumps(report.as_json())), output)
    if html is not None:
        from codistill.study.html import as_html

        try:
            html.write_text(as_html(report))
        except OSError as error:
            raise CommandError(f"cannot write {html}: {error.strerror}; name another file", Exit.UNAVAILABLE) from None
        say(f"the report is in {html}")
    return Exit.DONE if not report.missing else Exit.JOB_NOT_FINISHED


def _check_html(html: Path | None) -> None:
    """Before hours of training, whether the report could be written."""
    if html is None:
        return
    from importlib.util import find_spec

    if not html.absolute().parent.is_dir():
        raise CommandError(f"{html}: the directory does not exist; create it, or name another", Exit.USAGE)
    if find_spec("matplotlib") is None:
        raise CommandError(
            "--html needs matplotlib, not installed here: pip install 'codistill[plots]'", Exit.UNAVAILABLE
        )
