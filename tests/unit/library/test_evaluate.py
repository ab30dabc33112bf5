"""What is measured and written of a model, where some places have no label."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from codistill.batch import Batch
from codistill.churn import churn_survey
from codistill.compare.predictions import read_predictions
from codistill.evaluate import report, sums, validation_survey, write_predictions
from codistill.losses import IGNORED
from tests.support import new_run, small_spec

PROBABILITIES = torch.tensor([[[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]], [[0.3, 0.7], [0.6, 0.4], [0.75, 0.25]]])
LABELS = torch.tensor([[IGNORED, 0, 0], [1, IGNORED, IGNORED]])
"""Right with 0.9 and 0.7, wrong with 0.2."""
BATCH = Batch(torch.tensor([7, 3]), LABELS, {"x": PROBABILITIES})
LOG_LOSS = -(math.log(0.9) + math.log(0.2) + math.log(0.7)) / 3


class Says(nn.Module):
    """That each class is as likely as it is shown, or that the other one is."""

    def __init__(self, *, turned: bool = False) -> None:
        super().__init__()
        self.turned = turned

    def forward(self, shown: Tensor) -> Tensor:
        turned = torch.stack([shown[0].flip(-1), shown[1]]) if self.turned else shown
        return turned.log()


def test_places_without_a_label_count_in_no_measure() -> None:
    expected = {"eval/accuracy": 2 / 3, "eval/log_loss": LOG_LOSS}
    assert report(sums(PROBABILITIES.log(), LABELS)) == pytest.approx(expected)
    survey = validation_survey(lambda: [BATCH], every_steps=1)
    assert survey.report(survey.measure(nn.ModuleDict({"net": Says()}), BATCH)) == pytest.approx(expected)
    nothing = report(sums(PROBABILITIES.log(), torch.full_like(LABELS, IGNORED)))
    assert math.isnan(nothing["eval/log_loss"])


def test_churn_is_that_of_places_with_a_label() -> None:
    """Of the first sample, whose classes are turned round, two of three: 0.9 and 0.1, 0.2 and 0.8."""
    survey = churn_survey(lambda: [BATCH], lambda: Says(turned=True), every_steps=1)
    found = survey.report(survey.measure(nn.ModuleDict({"net": Says()}), BATCH))
    assert found == pytest.approx({"eval/churn": 2 / 3, "eval/soft_churn": (0.8 + 0.6) / 3})


def test_predictions_are_written_for_places_with_a_label_and_can_be_compared(tmp_path: Path) -> None:
    run = new_run(tmp_path, small_spec())
    path = run.replica(1, "replica-0") / "predictions" / "test.parquet"
    everything_masked = Batch(torch.tensor([9]), torch.full((1, 3), IGNORED), {"x": PROBABILITIES[:1]})
    write_predictions(path, Says(), [BATCH, everything_masked], torch.device("cpu"), 2)
    found = read_predictions(run, 1, "replica-0", "test")
    assert (found.ids.tolist(), found.positions.tolist(), found.labels.tolist()) == ([3, 7, 7], [0, 1, 2], [1, 0, 0])
    assert found.probabilities[:, 0].tolist() == pytest.approx([0.3, 0.9, 0.2])
