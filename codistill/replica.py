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
from codistill.evaluate import write_predictions
from codistill.exchange.clock import snapshots_to_keep
from codistill.exchange.peers import Counters, Mailbox, MailboxSettings, StopRequested
from codistill.exchange.snapshot import SnapshotId
from codistill.exchange.transport import MemoryTransport, Transport
from codistill.export import write_export
from codistill.loop import PhaseInProgress, Surroundings, finite, train_phase
from codistill.methods import plan
from codistill.phase import Artifacts, Learner, Phase, Replica, Survey
from codistill.randomness import seed_everything
from codistill.recipes import Recipe, open_recipe
from codistill.records import LEDGER, METRICS, Recorder, compact
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
        trainer = _Trainer(run, spec, fence, index, incarnation, connect, telemetry, device)
        trainer.should_stop = lambda: telemetry.stop_requested() or should_stop()
        trainer.before_step = before_step
        return (yield from trainer.run_phases())
    except BaseException as failure:
        if not isinstance(failure, GeneratorExit):
            log.error("%s ends at step %d: %s: %s", name, telemetry.beat.step, type(failure).__name__, failure)
        raise
    finally:
        telemetry.close()


class _Trainer:
    """What `replica_turns` keeps at hand while it goes through the phases."""

    should_stop: Callable[[], bool]
    before_step: Callable[[int], None]

    def __init__(
        self,
        run: RunDir,
        spec: JobSpec,
        fence: int,
        index: int,
        incarnation: int,
        connect: Connect,
        telemetry: Telemetry,
        device: str | None,
    ) -> None:
        self.run, self.spec, self.telemetry = run, spec, telemetry
        self.name = replica_name(index)
        self.me = SnapshotId(index, fence, incarnation, 0)
        self.device = torch.device(device or ("cuda" if spec.replicas.gpus > 0 else "cpu"))
        self.recipe: Recipe = open_recipe(spec)
        self.replica = Replica(index, spec.replicas.count, spec.seed)
        self.phases = plan(spec, self.recipe, self.replica)
        self.connect = connect
        directory = run.replica(fence, self.name)
        self.metrics = Recorder(directory / "metrics", METRICS, fence=fence, incarnation=incarnation)
        self.ledger = Recorder(directory / "ledger", LEDGER, fence=fence, incarnation=incarnation)
        self.counters = Counters()
        self.finished: dict[str, Learner] = {}
        self.results: dict[str, float] = {}
        self.started = time.monotonic()
        self.seconds_before = 0.0
        self.last_log = (0, time.monotonic())

    # ---- phases

    def run_phases(self) -> Generator[int, None, dict[str, Any]]:
        log.info(
            "%s, attempt %d, incarnation %d: %s on %s, %d steps on %s",
            self.name, self.me.fence, self.me.incarnation, self.spec.method.kind, self.spec.recipe.kind,
            self.spec.training.steps, self.device,
        )  # fmt: skip
        resumed = load_newest(self.run.checkpoints(self.name), readable_in(self.run, self.me.fence, self.name))
        at_phase = 0 if resumed is None else int(resumed.values["phase"])
        if resumed is not None:
            log.info("%s goes on from step %d of attempt %d", self.name, resumed.step, resumed.fence)
            self.counters = Counters(**resumed.values["counters"])
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
        self.telemetry.beat.state = "finishing"
        self._write_outcome(self.phases[-1], self.finished[self.phases[-1].name])
        return self._result("succeeded", self.spec.training.steps)

    def _begin(self, phase: Phase) -> PhaseInProgress:
        seed_everything(*self._stream(phase), "init")
        learner = phase.learner(Artifacts(self.finished)).to(self.device)
        return PhaseInProgress.begin(phase, learner)

    def _train(self, number: int, phase: Phase, work: PhaseInProgress) -> Generator[int]:
        self.telemetry.beat.phase = phase.name
        self.telemetry.beat.step = work.step
        mailbox = self._open_mailbox(phase, work)
        opening = Opening(lambda part: self._build_part(phase, part), mailbox)
        teachers = {source.name: source.open(opening) for source in phase.teachers}

        def after_step(step: int, stats: Mapping[str, Tensor]) -> None:
            self.telemetry.stepped(step)
            last = step == phase.steps
            if last or step % self.spec.training.log_interval_steps == 0:
                self.telemetry.beat.teachers = [entry for teacher in teachers.values() for entry in teacher.report()]
                self._log(step, stats)
            for survey in phase.surveys:
                if last or step % survey.every_steps == 0:
                    self._survey(survey, step, work.learner)
            if last or step % self.spec.training.checkpoint_interval_steps == 0:
                self._save(number, work)

        around = Surroundings(
            device=self.device,
            stream=self._stream(phase),
            mailbox=mailbox,
            should_stop=self.should_stop,
            before_step=self.before_step,
            after_step=after_step,
        )
        batches = phase.batches(Artifacts(self.finished))
        try:
            if mailbox is not None and work.step == 0:
                mailbox.await_peers(self.spec.exchange.start_together_s)
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
        transport = self.connect(scope)
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
        return Mailbox(transport, settings, self.ledger, part, self.counters, should_stop=self.should_stop)

    def _build_part(self, phase: Phase, part: str) -> nn.Module:
        return phase.learner(Artifacts(self.finished))[part].to(self.device)

    def _stream(self, phase: Phase) -> tuple[int | str, ...]:
        return (self.replica.seed, self.replica.index, phase.name)

    # ---- writing down

    def _log(self, step: int, stats: Mapping[str, Tensor]) -> None:
        numbers = finite(stats, step)
        before, then = self.last_log
        now = time.monotonic()
        self.last_log = (step, now)
        if step > before:
            step_s = (now - then) / (step - before)
            numbers |= {"time/step_s": step_s, "perf/samples_per_s": self.spec.training.batch_size / step_s}
        self._record(step, numbers | self.counters.as_metrics())
        self.telemetry.beat.bytes_sent = self.counters.bytes_sent
        self.telemetry.beat.bytes_received = self.counters.bytes_received

    def _survey(self, survey: Survey, step: int, learner: Learner) -> None:
        total: dict[str, float] = {}
        for batch in survey.batches():
            for key, value in survey.measure(learner, batch.to(self.device)).items():
                total[key] = total.get(key, 0.0) + value
        self.results = dict(survey.report(total))
        self._record(step, self.results)
        log.info("step %d: %s", step, ", ".join(f"{name} {value:.4f}" for name, value in self.results.items()))

    def _record(self, step: int, values: dict[str, float]) -> None:
        self.metrics.add_values(step, values)
        self.telemetry.measured(values)

    def _save(self, number: int, work: PhaseInProgress) -> None:
        # Rows first: a resumed replica repeats only the steps after the checkpoint.
        self.metrics.flush()
        self.ledger.flush()
        finished = {f"finished.{name}": learner.state_dict() for name, learner in self.finished.items()}
        values = {
            "phase": number,
            "in_progress": work.values(),
            "counters": vars(self.counters),
            "seconds": self._seconds(),
        }
        step = sum(phase.steps for phase in self.phases[:number]) + work.step
        checkpoint = Checkpoint(self.me.fence, step, {**work.tensors(), **finished}, values)
        path = save(self.run.checkpoints(self.name), checkpoint)
        log.info("step %d: checkpoint %s", step, path.name)

    def _write_outcome(self, phase: Phase, learner: Learner) -> None:
        module = phase.export(learner)
        if not self.results:  # resumed after the last step: the survey was made by an earlier incarnation
            for survey in phase.surveys:
                self._survey(survey, phase.steps, learner)
        directory = self.run.replica(self.me.fence, self.name)
        for split, batches in (("validation", self.recipe.validation()), ("test", self.recipe.test())):
            write_predictions(directory / "predictions" / f"{split}.parquet", module, batches, self.device)
        path = write_export(self.run, self.name, module, self.spec, self.recipe, self.results)
        log.info("the model is in %s", path)
        self.metrics.flush()
        self.ledger.flush()
        compact(directory / "metrics", METRICS)
        compact(directory / "ledger", LEDGER)

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _result(self, outcome: str, steps: int) -> dict[str, Any]:
        return {
            "outcome": outcome,
            "steps": steps,
            "incarnations": self.me.incarnation + 1,
            "error": None,
            "seconds": round(self._seconds(), 3),
            "bytes_sent": self.counters.bytes_sent,
            "bytes_received": self.counters.bytes_received,
            "metrics": self.results,
        }
