"""One replica from its first step to its export, wherever it runs: resume, train phase by phase, evaluate, write down.

`train_replica` is what a process of its own calls; `replica_turns` is the same as a generator, for replicas that take
turns in one process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from codistill.checkpoint import Checkpoint, load_newest, readable_in, save
from codistill.data.split import SplitName, in_order
from codistill.evaluate import write_predictions
from codistill.exchange.clock import snapshots_to_keep
from codistill.exchange.peers import Counters, Mailbox, MailboxSettings, StopRequested
from codistill.exchange.snapshot import SnapshotId
from codistill.exchange.transport import MemoryTransport, Transport
from codistill.export import write_export
from codistill.loop import PhaseInProgress, Surroundings, train_phase
from codistill.methods import plan
from codistill.notebook import Notebook
from codistill.phase import Artifacts, Learner, Phase, Replica
from codistill.randomness import seed_everything
from codistill.recipes import Recipe, open_recipe
from codistill.run_dir import RunDir
from codistill.spec import JobSpec, replica_name
from codistill.teachers import Opening
from codistill.telemetry import Beat, Telemetry
from codistill.topology import teachers_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SnapshotScope:
    """Whose transport is wanted, and how many of its snapshots it is to keep."""

    run: RunDir
    fence: int
    incarnation: int
    index: int
    replicas: int
    keep: int


Connect = Callable[[SnapshotScope], Transport]


def train_replica(
    run: RunDir,
    *,
    fence: int,
    index: int,
    connect: Connect,
    should_stop: Callable[[], bool] = lambda: False,
    device: str | None = None,
    before_step: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """Train replica `index` of the job to its end and return its entry of `result.json`.

    Counts a new incarnation, goes on from the newest good checkpoint, and ends early, after a last checkpoint and with
    outcome "cancelled", once the attempt's stop file appears or `should_stop` says so. `before_step` is called with
    each step's index before it begins. Raises what training raises; everything up to the last checkpoint is on disk.
    """
    turns = replica_turns(
        run,
        fence=fence,
        index=index,
        connect=connect,
        should_stop=should_stop,
        device=device,
        before_step=before_step,
    )
    while True:
        try:
            next(turns)
        except StopIteration as end:
            return cast(dict[str, Any], end.value)


def replica_turns(
    run: RunDir,
    *,
    fence: int,
    index: int,
    connect: Connect,
    should_stop: Callable[[], bool] = lambda: False,
    device: str | None = None,
    before_step: Callable[[int], None] = lambda step: None,
) -> Generator[int, None, dict[str, Any]]:
    """`train_replica` as a generator that yields where other replicas of the process may take their turn."""
    spec = run.read_spec()
    name = replica_name(index)
    torch.set_num_threads(max(1, int(spec.replicas.cpus)))
    incarnation = run.next_incarnation(fence, name)
    telemetry = Telemetry(run, Beat(name, fence, incarnation, spec.training.steps))
    try:
        outside = _Outside(
            connect=connect,
            should_stop=lambda: telemetry.stop_requested() or should_stop(),
            before_step=before_step,
            device=torch.device(device or ("cuda" if spec.replicas.gpus > 0 else "cpu")),
        )
        me = SnapshotId(index, fence, incarnation, 0)
        return (yield from _Training(run, spec, me, telemetry, outside).run_phases())
    except BaseException as failure:
        if not isinstance(failure, GeneratorExit):
            log.error("%s ends at step %d: %s: %s", name, telemetry.beat.step, type(failure).__name__, failure)
        raise
    finally:
        telemetry.close()


@dataclass(frozen=True)
class _Outside:
    """What a replica is given by whoever runs it."""

    connect: Connect
    should_stop: Callable[[], bool]
    before_step: Callable[[int], None]
    device: torch.device


class _Training:
    """A replica on its way through the phases."""

    def __init__(self, run: RunDir, spec: JobSpec, me: SnapshotId, telemetry: Telemetry, outside: _Outside) -> None:
        self.run, self.spec, self.me, self.outside = run, spec, me, outside
        self.name = replica_name(me.replica)
        self.recipe: Recipe = open_recipe(spec)
        self.replica = Replica(me.replica, spec.replicas.count, spec.seed)
        self.phases = plan(spec, self.recipe, self.replica)
        self.directory = run.replica(me.fence, self.name)
        self.notebook = Notebook(self.directory, telemetry, batch_size=spec.training.batch_size)
        self.finished: dict[str, Learner] = {}
        self.started = time.monotonic()
        self.seconds_before = 0.0

    # ---- phases

    def run_phases(self) -> Generator[int, None, dict[str, Any]]:
        log.info(
            "%s, attempt %d, incarnation %d: %s on %s, %d steps on %s",
            self.name, self.me.fence, self.me.incarnation, self.spec.method.kind, self.spec.recipe.kind,
            self.spec.training.steps, self.outside.device,
        )  # fmt: skip
        resumed = load_newest(self.run.checkpoints(self.name), readable_in(self.run, self.me.fence, self.name))
        at_phase = 0 if resumed is None else int(resumed.values["phase"])
        if resumed is not None:
            log.info("%s goes on from step %d of attempt %d", self.name, resumed.step, resumed.fence)
            self.notebook.counters = Counters(**resumed.values["counters"])
            self.seconds_before = float(resumed.values["seconds"])
        for number, phase in enumerate(self.phases):
            work = self._begin(phase)
            if resumed is not None and number < at_phase:
                work.learner.load_state_dict(dict(resumed.tensors[f"finished.{phase.name}"]))
            else:
                if resumed is not None and number == at_phase:
                    work.restore(resumed.tensors, resumed.values["in_progress"])
                try:
                    yield from self._train(number, phase, work)
                except StopRequested:
                    self._save(number, work)
                    return self._result("cancelled", work.step)
            self.finished[phase.name] = work.learner
        if self.run.superseded(self.me.fence):  # its end would replace that of the attempt that counts
            return self._result("cancelled", self.spec.training.steps)
        self.notebook.telemetry.beat.state = "finishing"
        self._write_outcome(self.phases[-1], self.finished[self.phases[-1].name])
        return self._result("succeeded", self.spec.training.steps)

    def _begin(self, phase: Phase) -> PhaseInProgress:
        seed_everything(*self._stream(phase), "init")
        learner = phase.learner(Artifacts(self.finished)).to(self.outside.device)
        return PhaseInProgress.begin(phase, learner)

    def _train(self, number: int, phase: Phase, work: PhaseInProgress) -> Generator[int]:
        mailbox = self._open_mailbox(phase, work)
        opening = Opening(lambda part: self._build_part(phase, part), mailbox)
        teachers = {source.name: source.open(opening) for source in phase.teachers}

        def after_step(step: int, stats: Mapping[str, Tensor]) -> None:
            self.notebook.telemetry.stepped(step)
            last = step == phase.steps
            if last or step % self.spec.training.log_interval_steps == 0:
                self.notebook.log(step, stats, [entry for teacher in teachers.values() for entry in teacher.report()])
            for survey in phase.surveys:
                if last or step % survey.every_steps == 0:
                    self.notebook.survey(survey, step, work.learner, self.outside.device)
            if last or step % self.spec.training.checkpoint_interval_steps == 0:
                self._save(number, work)

        around = Surroundings(
            device=self.outside.device,
            stream=self._stream(phase),
            mailbox=mailbox,
            should_stop=self.outside.should_stop,
            before_step=self.outside.before_step,
            after_step=after_step,
        )
        batches = phase.batches(Artifacts(self.finished))
        try:
            if mailbox is not None and work.step == 0:
                mailbox.await_peers(self.spec.exchange.start_together_s)
            self.notebook.begin(phase.name, work.step)
            yield from train_phase(phase, work, batches, teachers, around)
            if mailbox is not None and phase.publish is not None and self.spec.exchange.mode == "async":
                # Nobody waits for it, but those still training learn from the finished model from now on.
                mailbox.publish(work.step, work.learner[phase.publish.part], now=True)
        finally:
            if mailbox is not None:
                mailbox.close()

    def _open_mailbox(self, phase: Phase, work: PhaseInProgress) -> Mailbox | None:
        if phase.publish is None:
            return None
        exchange = self.spec.exchange
        lockstep = exchange.mode == "lockstep"
        keep = snapshots_to_keep(
            lockstep=lockstep,
            replicas=self.replica.count,
            interval_steps=exchange.interval_steps,
            checkpoint_interval_steps=self.spec.training.checkpoint_interval_steps,
        )
        scope = SnapshotScope(self.run, self.me.fence, self.me.incarnation, self.me.replica, self.replica.count, keep)
        transport = self.outside.connect(scope)
        settings = MailboxSettings(
            me=self.me,
            teachers=teachers_of(exchange.topology, self.replica.index, self.replica.count),
            rule=phase.publish,
            mode=exchange.mode,
            threaded=not lockstep and not isinstance(transport, MemoryTransport),
            max_lag_steps=exchange.max_lag_steps,
            timeout_s=self.spec.limits.lockstep_timeout_s,
        )
        part = work.learner[phase.publish.part]
        return Mailbox(
            transport,
            settings,
            self.notebook.ledger,
            part,
            self.notebook.counters,
            should_stop=self.outside.should_stop,
        )

    def _build_part(self, phase: Phase, part: str) -> nn.Module:
        return phase.learner(Artifacts(self.finished))[part].to(self.outside.device)

    def _stream(self, phase: Phase) -> tuple[int | str, ...]:
        return (self.replica.seed, self.replica.index, phase.name)

    # ---- writing down

    def _save(self, number: int, work: PhaseInProgress) -> None:
        # Rows first: a resumed replica repeats only the steps after the checkpoint.
        self.notebook.flush()
        finished = {f"finished.{name}": learner.state_dict() for name, learner in self.finished.items()}
        values = {
            "phase": number,
            "in_progress": work.values(),
            "counters": vars(self.notebook.counters),
            "seconds": self._seconds(),
        }
        step = sum(phase.steps for phase in self.phases[:number]) + work.step
        checkpoint = Checkpoint(self.me.fence, step, {**work.tensors(), **finished}, values)
        path = save(self.run.checkpoints(self.name), checkpoint)
        log.info("step %d: checkpoint %s", step, path.name)

    def _write_outcome(self, phase: Phase, learner: Learner) -> None:
        module = phase.export(learner)
        if not self.notebook.results:  # resumed after the last step: the survey was made by an earlier incarnation
            for survey in phase.surveys:
                self.notebook.survey(survey, phase.steps, learner, self.outside.device)
        splits: tuple[SplitName, ...] = ("validation", "test")
        for split in splits:
            path = self.directory / "predictions" / f"{split}.parquet"
            write_predictions(path, module, in_order(self.recipe.split(split)), self.outside.device)
        exported = write_export(self.run, self.name, module, self.spec, self.recipe, self.notebook.results)
        log.info("the model is in %s", exported)
        self.notebook.close()

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _result(self, outcome: str, steps: int) -> dict[str, Any]:
        return {
            "outcome": outcome,
            "steps": steps,
            "incarnations": self.me.incarnation + 1,
            "error": None,
            "seconds": round(self._seconds(), 3),
            "bytes_sent": self.notebook.counters.bytes_sent,
            "bytes_received": self.notebook.counters.bytes_received,
            "metrics": self.notebook.results,
        }
