"""An export loads without this package, and answers what the training model did."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from codistill.compare import read_predictions
from tests.support import new_run, run_in_turns, small_spec

PROGRAM = """
import sys
sys.modules["codistill"] = None
{code}
from sklearn.datasets import load_digits
images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
print(json.dumps(model(images).softmax(-1).tolist()))
"""


@pytest.mark.parametrize("batch_norm", [True, False])
def test_the_card_loads_the_model(tmp_path: Path, batch_norm: bool) -> None:
    run = new_run(tmp_path, small_spec(recipe={"batch_norm": batch_norm}))
    run_in_turns(run)
    directory = run.export("replica-1")
    card = (directory / "README.md").read_text()
    assert "method `codistillation` on recipe `digits`, 12 steps, seed 0" in card
    assert re.search(r"accuracy 0\.\d{4}, log_loss \d\.\d{4}", card)
    code = card.split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM.format(code=code)],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answered = np.array(json.loads(done.stdout))
    expected = read_predictions(run, 1, "replica-1", "test")
    np.testing.assert_allclose(answered[expected.ids], expected.probabilities, atol=1e-6)
