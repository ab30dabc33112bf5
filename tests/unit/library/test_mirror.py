"""TensorBoard's event files, read back record by record, as TensorBoard reads them."""

from __future__ import annotations

import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from codistill.mirror import TensorBoardMirror


def events(directory: Path) -> Iterator[Any]:
    """All events of a directory, files in the order of their names; a record cut off at the end is left out."""
    for path in sorted(directory.glob("*tfevents*")):
        data = path.read_bytes()
        while len(data) >= 12:
            (length,) = struct.unpack("<Q", data[:8])
            record = data[12 : 12 + length]
            if len(data) < 16 + length:
                break
            assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked_crc32c(record)
            yield event_pb2.Event.FromString(record)
            data = data[16 + length :]


def curves(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: a START event takes back what was written for its step and later ones."""
    shown: dict[str, list[tuple[int, float]]] = {}
    for event in events(directory):
        if event.session_log.status == event_pb2.SessionLog.START:
            shown = {name: [point for point in points if point[0] < event.step] for name, points in shown.items()}
        for value in event.summary.value:
            shown.setdefault(value.tag, []).append((event.step, value.simple_value))
    return shown


def test_values_are_read_back(tmp_path: Path) -> None:
    mirror = TensorBoardMirror(tmp_path / "deep" / "down")
    mirror.add_values(0, {"eval/log_loss": 2.25})
    mirror.add_values(10, {"train/loss": 0.5, "eval/log_loss": 1.75})
    mirror.close()
    assert curves(tmp_path / "deep" / "down") == {
        "eval/log_loss": [(0, 2.25), (10, 1.75)],
        "train/loss": [(10, 0.5)],
    }


def test_a_resumed_incarnation_shows_no_step_twice(tmp_path: Path) -> None:
    for resume_step, last in [(0, 7), (4, 9), (0, 3), (3, 5)]:
        mirror = TensorBoardMirror(tmp_path, resume_step=resume_step)
        for step in range(0 if resume_step == 0 else resume_step + 1, last + 1):
            mirror.add_values(step, {"loss": 10.0 * resume_step + step})
        mirror.flush()  # and then no close: it was killed
        mirror._writer._py_recordio_writer.close()
    assert curves(tmp_path) == {"loss": [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 34.0), (5, 35.0)]}


def test_files_of_one_second_are_read_in_the_order_of_their_making(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    for number in range(3):
        mirror = TensorBoardMirror(tmp_path, resume_step=number)
        mirror.add_values(number + 1, {"loss": float(number)})
        mirror.close()
    assert curves(tmp_path) == {"loss": [(1, 0.0), (2, 1.0), (3, 2.0)]}


KILLED = """
import os, signal, sys
from pathlib import Path
from codistill import mirror
mirror.FLUSH_INTERVAL_S = float(sys.argv[2])
it = mirror.TensorBoardMirror(Path(sys.argv[1]))
for step in range(5):
    it.add_values(step, {"loss": float(step)})
if sys.argv[3] == "flush":
    it.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("interval_s", "flush", "kept"), [("0", "no", 5), ("3600", "flush", 5), ("3600", "no", 0)])
def test_what_was_flushed_survives_a_kill(tmp_path: Path, interval_s: str, flush: str, kept: int) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), interval_s, flush], check=False)
    assert done.returncode == -signal.SIGKILL
    assert curves(tmp_path).get("loss", []) == [(step, float(step)) for step in range(kept)]


def test_it_needs_no_torch() -> None:
    code = "import sys, codistill.mirror, codistill.trackers; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "tensorboardX", "mlflow", "wandb"} & set(done.stdout.split())
