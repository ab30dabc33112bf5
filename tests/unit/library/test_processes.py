"""What is told of a process that ended with an error, out of what it printed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from codistill.processes import error_in, first_words

FRAMES = """Process replica-0:
Traceback (most recent call last):
  File "/somewhere/loop.py", line 118, in train_step
    work.scaler.scale(loss.value / len(micros)).backward()
    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
"""
CUDA = """torch.AcceleratorError: CUDA error: device-side assert triggered
Search for `cudaErrorAssert' in https://docs.nvidia.com/cuda/cuda-runtime-api/ for more information.
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.

"""
IN_A_WORKER = """ValueError: Caught ValueError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "/somewhere/worker.py", line 349, in _worker_loop
    data = fetcher.fetch(index)
ValueError: 3 of 10 values are missing; a data set may have none
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (FRAMES + CUDA, "AcceleratorError: CUDA error: device-side assert triggered"),
        (FRAMES + "codistill.run_dir.StorageError: no room\nNote: two lines\n", "StorageError: no room"),
        (FRAMES + "KeyError: 'x'\n\nDuring the above:\n\n" + FRAMES + "ValueError: y\n", "ValueError: y"),
        (FRAMES + IN_A_WORKER, "ValueError: 3 of 10 values are missing; a data set may have none"),
        (FRAMES + "AssertionError\n[rank0]: destroyed\n", "AssertionError"),
        ("a warning: of little use\nno room\n", "no room"),
        ("", ""),
    ],
    ids=["cuda", "two lines", "chained", "loader", "bare", "no traceback", "nothing"],
)
def test_the_error_is_told_and_not_what_is_printed_around_it(text: str, told: str) -> None:
    assert error_in(text) == told


def test_of_several_ranks_the_one_that_failed_first_is_heard(tmp_path: Path) -> None:
    said = [(30, "ConnectionError: connection closed by peer"), (20, "ValueError: the cause"), (10, "")]
    outputs = [tmp_path / f"rank-{rank}" for rank in range(4)]
    for output, (at, words) in zip(outputs, said, strict=False):
        output.write_text(FRAMES + words if words else "")
        os.utime(output, ns=(at, at))
    assert first_words(outputs) == "ValueError: the cause"
    assert first_words(outputs[2:]) is None
