"""The callback for Hugging Face's Trainer, on real data with two replicas."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from codistill.records import LEDGER, _read_directory  # pyright: ignore[reportPrivateUsage]
from tests.unit.library.test_own_loop import EXAMPLES, together

pytest.importorskip("transformers", reason="the extra `hf` is not installed")


@pytest.mark.slow
def test_two_trainers_teach_each_other_and_accumulation_changes_nothing(tmp_path: Path) -> None:
    """In lockstep, micro-batches of 16 add up to a batch of 32: the term is scaled as the model's own loss is."""
    commands = [
        [sys.executable, str(EXAMPLES / "hf_trainer.py"), "--directory", str(tmp_path / f"cut-{cut}"),
         "--replica", str(replica), "--steps", "40", "--accumulate", str(cut), "--mode", "lockstep"]
        for cut in (1, 2) for replica in (0, 1)
    ]  # fmt: skip
    together(commands)
    for replica in (0, 1):
        whole, cut = (torch.load(tmp_path / f"cut-{parts}-{replica}.pt") for parts in (1, 2))
        for name, weights in whole.items():
            torch.testing.assert_close(cut[name], weights, rtol=0, atol=1e-4, msg=name)
        rows = _read_directory(tmp_path / f"cut-2/attempts/1/replicas/replica-{replica}/ledger", LEDGER).to_pylist()
        assert [row["step"] for row in rows] == list(range(13, 40)), "heard once a step, not once a micro-batch"
        assert {row["version"] for row in rows} == {13, 20}
