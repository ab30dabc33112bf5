"""Arms side by side: quality, calibration, churn, diversity, cost, and what differs beyond chance. Reads what runs left
behind; needs no torch.

    compare({"solo": [run_1, run_2], "pair": [run_3, run_4]}).as_text()

One file a step: `arms` (which replicas of which runs), `predictions` (read), `metrics` and `paired` (pure mathematics),
`models` (which model stands for a run), `rows` (numbers), `render` and `plots` (for people).
"""

from codistill.compare.arms import ArmError, group_by_spec
from codistill.compare.comparison import Comparison, compare
from codistill.compare.predictions import NothingToCompare, Predictions, read_predictions
from codistill.compare.rows import Difference, Row, Score

__all__ = [
    "ArmError",
    "Comparison",
    "Difference",
    "NothingToCompare",
    "Predictions",
    "Row",
    "Score",
    "compare",
    "group_by_spec",
    "read_predictions",
]
