"""What one incarnation of a replica writes down: metrics, ledger, heartbeat, log lines."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codistill.exchange.terms import Counters
from codistill.loop import finite
from codistill.phase import Learner, Survey
from codistill.ranks import Ranks
from codistill.records import LEDGER, METRICS, Recorder, compact
from codistill.telemetry import Telemetry
from codistill.throughput import Throughput
from codistill.trackers import Tracker

log = logging.getLogger(__name__)


class Notebook:
    """Keeps the records of a replica in `directory`, and its heartbeat up to date.

    With several ranks, all call the same methods; the first alone writes.
    """

    def __init__(self, directory: Path, telemetry: Telemetry, throughput: Throughput, ranks: Ranks) -> None:
        beat = telemetry.beat
        self.telemetry = telemetry
        self.counters = Counters()
        self.results: dict[str, float] = {}
        """What the newest surveys reported."""
        self._directory, self._throughput, self._ranks = directory, throughput, ranks

        def recorder(kind: str, schema: Any) -> Recorder:
            place = directory / kind if ranks.leads else None
            return Recorder(place, schema, fence=beat.fence, incarnation=beat.incarnation)

        self.ledger = recorder("ledger", LEDGER)
        self._metrics = recorder("metrics", METRICS)
        self._trackers: Sequence[Tracker] = ()
        self._last = (0, time.monotonic())

    def mirror_to(self, trackers: Sequence[Tracker]) -> None:
        """Show these, too, every value from now on."""
        self._trackers = trackers

    def begin(self, phase: str, step: int) -> None:
        """The phase goes on from `step`; speed is measured from here."""
        beat = self.telemetry.beat
        beat.phase, beat.step, beat.first_step, beat.first_step_at = phase, step, step, None
        self._last = (step, time.monotonic())

    def log(self, step: int, stats: Mapping[str, Tensor], teachers: Sequence[Mapping[str, Any]]) -> None:
        """Write the statistics of the step that was completed last. Raises `TrainingDiverged`."""
        numbers = finite(self._ranks.means(stats), step)
        (before, then), now = self._last, time.monotonic()
        self._last = (step, now)
        if step > before:
            numbers |= self._throughput.rates((now - then) / (step - before))
        beat = self.telemetry.beat
        beat.teachers = [dict(teacher) for teacher in teachers]
        beat.bytes_sent, beat.bytes_received = self.counters.bytes_sent, self.counters.bytes_received
        self._record(step, numbers | self.counters.as_metrics())

    def survey(self, survey: Survey, step: int, learner: Learner, device: torch.device) -> Mapping[str, float]:
        """Make a survey, each rank of its share of the batches, and write what it reports. Returns the sums over all
        ranks."""
        mine: dict[str, float] = {}
        for batch in islice(survey.batches(), self._ranks.rank, None, self._ranks.count):
            for key, value in survey.measure(learner, batch.to(device)).items():
                mine[key] = mine.get(key, 0.0) + value
        total = self._ranks.totals(mine)
        found = dict(survey.report(total))
        self.results |= found
        self._record(step, found)
        log.info("step %d: %s", step, ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
        return total

    def flush(self) -> None:
        """Put on the disk what has been written so far."""
        self._metrics.flush()
        self.ledger.flush()
        for tracker in self._trackers:
            tracker.flush()

    def close(self) -> None:
        """Nothing more will be written: one file each instead of many."""
        self.flush()
        for tracker in self._trackers:
            tracker.close()
        compact(self._directory / "metrics", METRICS)
        compact(self._directory / "ledger", LEDGER)

    def _record(self, step: int, values: dict[str, float]) -> None:
        self._metrics.add_values(step, values)
        for tracker in self._trackers:
            tracker.add_values(step, values)
        self.telemetry.measured(values)
