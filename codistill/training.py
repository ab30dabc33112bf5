"""One replica on its way through the phases: resume, train, evaluate, write down."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from codistill.batch import Batch
from codistill.checkpoint import Checkpoint, load, load_newest, readable_in, save
from codistill.data.loader import read_ahead
from codistill.data.split import SplitName, check_none_is_empty, in_order
from codistill.environment import write_environment
from codistill.evaluate import write_predictions
from codistill.exchange.opening import Member, OpenMailbox, open_mailbox
from codistill.exchange.snapshot import SnapshotId
from codistill.exchange.terms import StopRequested
from codistill.exchange.transport import Connect
from codistill.export import write_export
from codistill.loop import WHAT_TO_DO, Surroundings, TrainingDiverged, train_phase
from codistill.memory import MemoryGauge, process_bytes
from codistill.methods import plan
from codistill.notebook import Notebook
from codistill.numerics import Numerics, hardware_of
from codistill.opener import Opener
from codistill.phase import Artifacts, Learner, Phase, Replica
from codistill.randomness import seed_everything
from codistill.ranks import Ranks
from codistill.recipes import Recipe, open_recipe
from codistill.run_dir import INHERITED_FENCE, RunDir
from codistill.spec import JobSpec
from codistill.telemetry import Telemetry
from codistill.throughput import throughput_of
from codistill.trackers import open_trackers
from codistill.work import PhaseInProgress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outside:
    """What a replica is given by whoever runs it."""

    connect: Connect
    should_stop: Callable[[], bool]
    before_step: Callable[[int], None]
    ranks: Ranks
    numerics: Numerics
    open_mailbox: OpenMailbox = open_mailbox


class ReplicaTraining:
    """A replica on its way through the phases of `spec`; what it writes goes under `name`."""

    def __init__(
        self, run: RunDir, spec: JobSpec, me: SnapshotId, telemetry: Telemetry, outside: Outside, *, name: str
    ) -> None:
        self.run, self.spec, self.me, self.outside, self.name = run, spec, me, outside, name
        self.recipe: Recipe = open_recipe(spec)
        check_none_is_empty(self.recipe.split)
        self.ranks, self.device = outside.ranks, outside.numerics.device
        self.replica = Replica(me.replica, spec.replicas.count, spec.seed, self.ranks.rank, self.ranks.count)
        self.phases = plan(spec, self.recipe, self.replica)
        self.directory = run.replica(me.fence, self.name)
        speed = throughput_of(
            self.recipe,
            batch_size=spec.training.batch_size,
            ranks=self.ranks.count,
            device=self.device,
            precision=spec.training.precision,
        )
        self.notebook = Notebook(self.directory, telemetry, speed, self.ranks)
        member = Member(
            run=run,
            me=me,
            replicas=self.replica.count,
            ranks=self.ranks,
            connect=outside.connect,
            ledger=self.notebook.ledger,
            counters=self.notebook.counters,
            should_stop=outside.should_stop,
        )
        self.opener = Opener(spec, member, outside.open_mailbox, self._place)
        self.finished: dict[str, Learner] = {}
        self.started = time.monotonic()
        self.memory = MemoryGauge(self.device)
        self.seconds_before = 0.0

    # ---- phases

    def run_phases(self) -> Generator[int, None, dict[str, Any]]:
        log.info(
            "%s, attempt %d, incarnation %d: %s on %s, %d steps on %s",
            self.name, self.me.fence, self.me.incarnation, self.spec.method.kind, self.spec.recipe.kind,
            self._before(len(self.phases)), self.device,
        )  # fmt: skip
        resumed = self._newest_checkpoint()
        at_phase = 0 if resumed is None else int(resumed.values["phase"])
        if resumed is not None:
            log.info("%s goes on from step %d of attempt %d", self.name, resumed.step, resumed.fence)
            self.notebook.counters.go_on_from(resumed.values["counters"])
            self.seconds_before = float(resumed.values["seconds"])
        if self.ranks.leads:
            self._open_records(0 if resumed is None else resumed.step)
        for number, phase in enumerate(self.phases):
            work = self._begin(phase)
            if resumed is not None and number < at_phase:
                work.learner.load_state_dict(dict(resumed.tensors[f"finished.{phase.name}"]))
                self.finished[phase.name] = work.learner
            else:
                try:
                    yield from self._train(number, phase, work, resumed if number == at_phase else None)
                except StopRequested:
                    self._save(number, work)
                    return self._result("cancelled", self._before(number) + work.step)
                self.finished[phase.name] = work.served
        if self.run.superseded(self.me.fence):  # its end would replace that of the attempt that counts
            return self._result("cancelled", self._before(len(self.phases)))
        self.notebook.telemetry.beat.state = "finishing"
        self._write_outcome(self.phases[-1], self.finished[self.phases[-1].name])
        return self._result("succeeded", self._before(len(self.phases)))

    def _before(self, number: int) -> int:
        """Steps of all phases before this one."""
        return sum(phase.steps for phase in self.phases[:number])

    def _open_records(self, resume_step: int) -> None:
        if self.me.replica == 0:
            write_environment(self.run, self.me.fence, self.spec, data_digests=self.recipe.data_digests())
        names = self.spec.training.trackers
        self.notebook.mirror_to(open_trackers(names, self.run, self.name, self.spec, resume_step))

    def _begin(self, phase: Phase) -> PhaseInProgress:
        seed_everything(*self._stream(phase), "init")
        learner = phase.learner(Artifacts(self.finished)).to(self.device)
        scaler = self.outside.numerics.scaler()
        work = PhaseInProgress.begin(phase, learner, ema_decay=self.spec.training.ema_decay, scaler=scaler)
        self._compile(learner.values())
        return work

    def _train(self, number: int, phase: Phase, work: PhaseInProgress, resumed: Checkpoint | None) -> Generator[int]:
        before = self._before(number)
        around = Surroundings(
            numerics=self.outside.numerics,
            ranks=self.ranks,
            stream=self._stream(phase),
            should_stop=self.outside.should_stop,
            before_step=lambda step: self.outside.before_step(before + step),
            after_step=lambda step, stats: self._after_step(number, phase, work, step, stats),
            gradients_sent=lambda num_bytes: self.notebook.counters.averaged_gradients(num_bytes),
        )
        finished_at: int | None = None
        if resumed is not None:
            work.restore(resumed.tensors, resumed.values["in_progress"])
        try:
            self.opener.open(phase, work, Artifacts(self.finished))
            if resumed is not None:
                work.restore_companions(resumed.tensors)
                if resumed.fence == INHERITED_FENCE:
                    for companion in work.companions.values():
                        companion.forget_attempts()
            self.notebook.begin(phase.name, before + work.step)
            yield from train_phase(phase, work, self._batches(phase, work.step), around)
            finished_at = phase.steps
            work.clear_gradients()  # the learner may stay, as a teacher
        finally:
            with ExitStack() as stack:  # each of them, whatever the others raise
                for companion in work.companions.values():
                    stack.callback(companion.close, finished_at)

    def _after_step(
        self,
        number: int,
        phase: Phase,
        work: PhaseInProgress,
        step: int,
        stats: Mapping[str, Tensor],
    ) -> None:
        training, last = self.spec.training, step == phase.steps
        step_of_all = self._before(number) + step
        self.notebook.telemetry.stepped(step_of_all)
        if last or step % training.log_interval_steps == 0:
            heard = [entry for companion in work.companions.values() for entry in companion.report()]
            self.notebook.log(step_of_all, stats, heard)
        due = [survey for survey in phase.surveys if last or step % survey.every_steps == 0]
        if due:
            self._agree_on_buffers(work)
        for survey in due:
            measured = work.served if survey.fold is None else work.learner
            total = self.notebook.survey(survey, step_of_all, measured, self.device)
            if survey.fold is not None:
                work.state = survey.fold(work.state, total)
        if last or step % training.checkpoint_interval_steps == 0:
            self._save(number, work)

    def _batches(self, phase: Phase, step: int) -> Iterator[Batch]:
        batches = phase.batches(Artifacts(self.finished))
        pin = self.device.type == "cuda"
        return read_ahead(batches, range(step, phase.steps), self.spec.training.loader, pin=pin)

    def _place(self, module: nn.Module) -> nn.Module:
        module.to(self.device)
        self._compile([module])
        return module

    def _compile(self, parts: Iterable[nn.Module]) -> None:
        if self.spec.training.compile:
            for part in parts:
                part.compile()

    def _agree_on_buffers(self, work: PhaseInProgress) -> None:
        self.ranks.average_buffers([work.learner] if work.average is None else [work.learner, work.served])

    def _stream(self, phase: Phase) -> tuple[int | str, ...]:
        return (self.replica.seed, self.replica.index, phase.name)

    # ---- writing down

    def _save(self, number: int, work: PhaseInProgress) -> None:
        self._agree_on_buffers(work)
        step = self._before(number) + work.step
        if self.ranks.any(not work.is_finite):  # before it takes the place of one that is
            raise TrainingDiverged(f"the weights after step {step} are not finite; {WHAT_TO_DO}")
        tensors = work.tensors()
        if not self.ranks.leads:
            return
        # Rows first: a resumed replica repeats only the steps after the checkpoint.
        self.notebook.flush()
        finished = {f"finished.{name}": learner.state_dict() for name, learner in self.finished.items()}
        values = {
            "phase": number,
            "in_progress": work.values(),
            "counters": vars(self.notebook.counters),
            "seconds": self._seconds(),
        }
        checkpoint = Checkpoint(self.me.fence, step, {**tensors, **finished}, values)
        path = save(self.run.checkpoints(self.name), checkpoint)
        log.info("step %d: checkpoint %s", step, path.name)

    def _newest_checkpoint(self) -> Checkpoint | None:
        """The same on all ranks: the first looks which one is good."""
        place = self.run.checkpoints(self.name)
        found = None
        if self.ranks.leads:
            found = load_newest(place, readable_in(self.run, self.me.fence, self.name))
        chosen = self.ranks.from_first(None if found is None else [found.fence, found.step])
        return load(place, *chosen) if chosen is not None and found is None else found

    def _write_outcome(self, phase: Phase, learner: Learner) -> None:
        module = phase.export(learner)
        if not self.notebook.results:  # resumed after the last step: the survey was made by an earlier incarnation
            for survey in phase.surveys:
                self.notebook.survey(survey, self._before(len(self.phases)), learner, self.device)
        for name, value in self.notebook.results.items():
            if not math.isfinite(value):  # neither the export nor `result.json` could hold it
                raise TrainingDiverged(f"{name} after step {self._before(len(self.phases))} is {value}; {WHAT_TO_DO}")
        if not self.ranks.leads:
            return
        splits: tuple[SplitName, ...] = ("validation", "test")
        for split in splits:
            path = self.directory / "predictions" / f"{split}.parquet"
            write_predictions(path, module, in_order(self.recipe.split(split)), self.device, self.recipe.classes)
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
            "step_s": self.notebook.telemetry.step_s(),
            "memory_bytes": self.memory.tensors_bytes(),
            "process_bytes": process_bytes(),
            "hardware": hardware_of(self.device),
        }
