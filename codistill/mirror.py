"""A replica's metrics as TensorBoard event files, beside the records, which stay the truth."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

FLUSH_INTERVAL_S = 2.0


class TensorBoardMirror:
    """Writes scalars into one event file of its own in `directory`.

    All incarnations of a replica, over all attempts, write into one directory, so that it stays one curve. Each begins
    its file by telling TensorBoard to forget the steps that it will make again (a START event, TensorFlow's
    `purge_step`); a directory per incarnation would show those steps twice.

    Events are written by the caller's thread and handed to the operating system every two seconds and on `flush`: a
    process that is killed loses no more than that. Raises `OSError` when the disk refuses.
    """

    def __init__(self, directory: Path, *, resume_step: int = 0) -> None:
        # Not SummaryWriter: it queues events for a thread, and its flush passes by that queue.
        from tensorboardX.event_file_writer import EventsWriter

        directory.mkdir(parents=True, exist_ok=True)
        # Readers go by the order of names, which begin with the second; the suffix is for several in one second.
        self._writer = EventsWriter(str(directory / "events"), f".{time.time_ns()}")
        self._last_flush_s = time.monotonic()
        self._event, self._summary = _messages()
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        self._write(first_new_step(resume_step), session_log=start)
        self._writer.flush()

    def add_values(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar per named value; `step` is the number of steps completed."""
        scalars = [self._summary.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=self._summary.Summary(value=scalars))
        if time.monotonic() - self._last_flush_s >= FLUSH_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Hand over what was written so far; before every checkpoint, since what comes before it is not repeated."""
        self._writer.flush()
        self._last_flush_s = time.monotonic()

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._event.Event(wall_time=time.time(), step=step, **content))


def first_new_step(resume_step: int) -> int:
    """The first step whose values a replica writes that goes on after `resume_step` completed steps. One that begins
    anew, with 0, writes step 0 as well."""
    return resume_step + 1 if resume_step > 0 else 0


def _messages() -> tuple[Any, Any]:
    """The generated modules of events and summaries, whose classes no type checker can see."""
    from tensorboardX.proto import event_pb2, summary_pb2

    return cast(Any, event_pb2), cast(Any, summary_pb2)
