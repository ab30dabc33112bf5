"""The documentation's example of one's own data, and that what it makes can be learnt by name."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from tests.support import new_run, run_in_turns, small_spec

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "own_data.py"


def test_the_example_makes_images_that_a_spec_can_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path / "data"))
    runpy.run_path(str(EXAMPLE))
    assert capsys.readouterr().out == f"{tmp_path / 'data' / 'scans'}: 1,797 images\n"
    pixels, labels = load_digits(return_X_y=True)
    rows = pq.read_table(tmp_path / "data" / "scans" / "test-00000.parquet").to_pylist()
    assert [row["label"] for row in rows] == labels[1::5].tolist()
    second = np.frombuffer(rows[1]["image"], np.uint8)
    assert np.array_equal(np.round(second / 255 * 16), pixels[6]), "row 6 of all is the second in the test split"
    spec = small_spec(
        recipe={"kind": "images", "data": "scans", "model": {"kind": "mlp", "width": 32}},
        training={"steps": 80, "batch_size": 64, "evaluate_interval_steps": 80, "checkpoint_interval_steps": 80},
    )
    results = run_in_turns(new_run(tmp_path, spec))
    assert min(result["metrics"]["eval/accuracy"] for result in results.values()) > 0.85
