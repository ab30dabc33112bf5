"""What one incarnation of a replica writes down: metrics, ledger, heartbeat, log lines."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codistill.exchange.peers import Counters
from codistill.loop import finite
from codistill.phase import Learner, Survey
from codistill.records import LEDGER, METRICS, Recorder, compact
from codistill.telemetry import Telemetry

log = logging.getLogger(__name__)


class Notebook:
    """Keeps the records of a replica in `directory`, and its heartbeat up to date."""

    def __init__(self, directory: Path, telemetry: Telemetry, *, batch_size: int) -> None:
        beat = telemetry.beat
        self.telemetry = telemetry
        self.ledger = Recorder(directory / "ledger", LEDGER, fence=beat.fence, incarnation=beat.incarnation)
        self.counters = Counters()
        self.results: dict[str, float] = {}
        """What the newest survey reported."""
        self._directory, self._batch_size = directory, batch_size
        self._metrics = Recorder(directory / "metrics", METRICS, fence=beat.fence, incarnation=beat.incarnation)
        self._last = (0, time.monotonic())

    def begin(self, phase: str, step: int) -> None:
        """The phase goes on from `step`; speed is measured from here."""
        self.telemetry.beat.phase, self.telemetry.beat.step = phase, step
        self._last = (step, time.monotonic())

    def log(self, step: int, stats: Mapping[str, Tensor], teachers: list[dict[str, Any]]) -> None:
        """Write the statistics of the step that was completed last. Raises `TrainingDiverged`."""
        numbers = finite(stats, step)
        (before, then), now = self._last, time.monotonic()
        self._last = (step, now)
        if step > before:
            step_s = (now - then) / (step - before)
            numbers |= {"time/step_s": step_s, "perf/samples_per_s": self._batch_size / step_s}
        beat = self.telemetry.beat
        beat.teachers = teachers
        beat.bytes_sent, beat.bytes_received = self.counters.bytes_sent, self.counters.bytes_received
        self._record(step, numbers | self.counters.as_metrics())

    def survey(self, survey: Survey, step: int, learner: Learner, device: torch.device) -> None:
        """Make a survey and write what it reports."""
        total: dict[str, float] = {}
        for batch in survey.batches():
            for key, value in survey.measure(learner, batch.to(device)).items():
                total[key] = total.get(key, 0.0) + value
        self.results = dict(survey.report(total))
        self._record(step, self.results)
        log.info("step %d: %s", step, ", ".join(f"{name} {value:.4f}" for name, value in self.results.items()))

    def flush(self) -> None:
        """Put on the disk what has been written so far."""
        self._metrics.flush()
        self.ledger.flush()

    def close(self) -> None:
        """Nothing more will be written: one file each instead of many."""
        self.flush()
        compact(self._directory / "metrics", METRICS)
        compact(self._directory / "ledger", LEDGER)

    def _record(self, step: int, values: dict[str, float]) -> None:
        self._metrics.add_values(step, values)
        self.telemetry.measured(values)
