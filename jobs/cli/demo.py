"""`codistill demo`: two models alone against two pairs that teach each other, through the whole stack.

It starts a service of its own in a home of its own, submits over HTTP, says where the page shows it, compares, and ends
everything it started. The store of a demo that went well is kept beside the run directories, so that the page can show
them again.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
import webbrowser
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codistill.data.catalog import find_dataset
from codistill.data.home import DataError, data_home
from codistill.run_dir import RunDir
from codistill.spec import JobSpec
from codistill.spec_errors import parse_spec
from jobs.cli.demo_service import new_place, own_service
from jobs.cli.exits import CommandError, Exit
from jobs.cli.output import emit, home, say
from jobs.status import State

if TYPE_CHECKING:
    from codistill.compare import Comparison, Row
    from jobs.client import Client, RemoteJob

IMAGES_DATA = "fashion-mnist"
SEEDS = (1, 2)
SOLO, PAIR = "solo", "codistilled"
JOBS_TIMEOUT_S = 420.0
POLL_S = 0.5
MARGIN = 0.02
NO_HELP = "exchange did not help here"


class DemoRecipe(StrEnum):
    """What the demo trains on."""

    AUTO = "auto"
    IMAGES = "images"
    DIGITS = "digits"


def demo(
    recipe: Annotated[
        DemoRecipe, typer.Option(help="images: Fashion-MNIST, fetched if need be; auto: digits where it cannot be had")
    ] = DemoRecipe.AUTO,
    browser: Annotated[
        bool, typer.Option(help="Open the page, where a terminal has a display; never where CI is set")
    ] = True,
) -> int:
    """Train two models alone and two pairs together, through the whole stack, and compare."""
    from jobs.cli.local import require_cluster

    require_cluster("demo")
    chosen = settle_recipe(recipe)
    place = new_place(home() / "demo")
    with _sigterm_as_interrupt(), own_service(place) as url:
        from jobs.client import Client

        with Client(url) as client:
            arms = {arm: [client.submit(spec).id for spec in specs] for arm, specs in demo_specs(chosen).items()}
            say(f"the page: {url}/ shows all four jobs live, {url}/jobs/{arms[PAIR][0]} the first pair")
            if browser and is_at_a_display(os.environ, terminal=sys.stdin.isatty() and sys.stderr.isatty()):
                webbrowser.open(f"{url}/")
            _follow(client, arms)
    _report(place, arms)
    return Exit.DONE


def is_at_a_display(environment: Mapping[str, str], *, terminal: bool) -> bool:
    """Whether a browser opened here would be seen by whoever started the command, and is not in their way."""
    elsewhere = environment.get("CI") or environment.get("SSH_CONNECTION")
    return terminal and not elsewhere and bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))


def settle_recipe(asked: DemoRecipe) -> DemoRecipe:
    """`images` if its data are here or can be fetched. Raises `CommandError` when they were asked for and cannot."""
    if asked is DemoRecipe.DIGITS:
        return asked
    try:
        find_dataset(IMAGES_DATA)
    except DataError:
        from codistill.data.sources import import_dataset

        try:
            import_dataset(IMAGES_DATA, data_home(), say=say)
        except DataError as error:
            if asked is DemoRecipe.IMAGES:
                raise CommandError(str(error), Exit.UNAVAILABLE) from None
            say(f"the demo stays with scikit-learn's digits: {error}")
            return DemoRecipe.DIGITS
    return DemoRecipe.IMAGES


def demo_specs(recipe: DemoRecipe) -> dict[str, list[JobSpec]]:
    """The jobs of both arms: the same budget per replica, independent runs that differ in their seed."""
    import tomllib

    from jobs.examples import example_text

    files = {SOLO: f"demo-{recipe}-solo", PAIR: f"demo-{recipe}-pair"}
    texts = {arm: tomllib.loads(example_text(file)) for arm, file in files.items()}
    return {arm: [parse_spec({**values, "seed": seed}) for seed in SEEDS] for arm, values in texts.items()}


@contextmanager
def _sigterm_as_interrupt() -> Generator[None]:
    """SIGTERM takes the way of Ctrl-C, past every clean-up."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


# ---------------------------------------------------------------- follow


def _follow(client: Client, arms: Mapping[str, Sequence[str]]) -> None:
    """Live lines until all have succeeded. Raises `CommandError` when one does not."""
    from jobs.cli.watch import LineReporter

    open_jobs = {job_id: LineReporter(f"{arm:<12}") for arm, ids in arms.items() for job_id in ids}
    give_up = time.monotonic() + JOBS_TIMEOUT_S
    while open_jobs:
        for job_id, reporter in list(open_jobs.items()):
            job = client.show(job_id)
            for line in reporter.lines(job, time.monotonic()):
                say(line)
            if job.ended:
                del open_jobs[job_id]
                _refuse_failure(job)
        if time.monotonic() > give_up:
            raise CommandError(
                f"{', '.join(open_jobs)} did not end in {JOBS_TIMEOUT_S:g} s; try again when less else runs",
                Exit.JOB_NOT_FINISHED,
            )
        time.sleep(POLL_S)


def _refuse_failure(job: RemoteJob) -> None:
    if job.state is not State.SUCCEEDED:
        because = job.reason.message if job.reason else "no reason was given"
        raise CommandError(
            f"{job.id} is {job.state}: {because}; see: codistill logs {job.id} --replica driver", Exit.JOB_FAILED
        )


# ---------------------------------------------------------------- report


def _report(place: Path, arms: Mapping[str, Sequence[str]]) -> None:
    from codistill.compare import compare
    from jobs.client import DEFAULT_URL

    storage = place / "runs"
    runs = {arm: [RunDir(storage, job_id) for job_id in ids] for arm, ids in arms.items()}
    comparison = compare(runs, ensemble_of=SOLO)
    emit("")
    emit(comparison.as_text())
    emit(f"{len(SEEDS)} seeds: an illustration, not evidence")
    emit(verdict(comparison))
    words = " ".join(f"{arm}={','.join(ids)}" for arm, ids in arms.items())
    say(f"\nrun directories: {storage}")
    say("the demo's service has ended, and its page with it")
    say("next:")
    say(f"  {again(place, os.environ)}")
    say(f"                                                       # these jobs on the page again, at {DEFAULT_URL}/")
    say("  codistill init my.toml && codistill run my.toml      # change what you like, train here")
    say("  codistill serve                                      # then, elsewhere: codistill submit my.toml --watch")
    say(f"  codistill compare --storage {storage} {words}")


def again(place: Path, environment: Mapping[str, str]) -> str:
    """The command that has a demo's jobs on the page, for whoever has this environment."""
    own_store = "CODISTILL_DATABASE= " if environment.get("CODISTILL_DATABASE") else ""
    return f"{own_store}CODISTILL_HOME={shlex.quote(str(place))} codistill serve"


def verdict(comparison: Comparison) -> str:
    """Whether exchanging helped, said either way. What differs by less than `MARGIN` is called the same."""
    solo, pair = _row(comparison, SOLO), _row(comparison, PAIR)
    changes = {
        "error": _change(1 - pair.accuracy, 1 - solo.accuracy),
        "log loss": _change(pair.log_loss, solo.log_loss),
        "churn": _change(pair.mean_abs_difference or 0.0, solo.mean_abs_difference or 0.0),
    }
    told = ", ".join(f"{name} {change:+.0%}" for name, change in changes.items())
    better = [name for name, change in changes.items() if change < -MARGIN]
    worse = [name for name, change in changes.items() if change > MARGIN]
    head = "exchange helped here" if better and not worse else "exchange helped only in part" if better else NO_HELP
    return f"{head}: {told}; to serve, by log loss on validation: {comparison.served.arm}"


def _change(new: float, old: float) -> float:
    return new / old - 1 if old else 0.0


def _row(comparison: Comparison, arm: str) -> Row:
    return next(row for row in comparison.rows if row.arm == arm)
