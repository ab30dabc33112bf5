"""How good a model is, and what it predicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codistill.batch import Batch
from codistill.phase import Learner, Survey
from codistill.randomness import unseen

PREDICTIONS = pa.schema(
    [("sample_id", pa.int64()), ("label", pa.int64()), ("log_probabilities", pa.list_(pa.float32()))],
    metadata={"schema_version": "1"},
)


def sums(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Of logits [N, classes]: how many samples, how many right, the sum of their negative log-probabilities (nats)."""
    return {
        "count": float(len(labels)),
        "correct": float((logits.argmax(-1) == labels).sum()),
        "nats": float(F.cross_entropy(logits.float(), labels, reduction="sum")),
    }


def report(total: Mapping[str, float]) -> dict[str, float]:
    """Accuracy (share) and log loss (nats per sample)."""
    count = total.get("count", 0.0)
    if count == 0:
        return {"eval/accuracy": math.nan, "eval/log_loss": math.nan}
    return {"eval/accuracy": total["correct"] / count, "eval/log_loss": total["nats"] / count}


def validation_survey(batches: Callable[[], Iterable[Batch]], *, every_steps: int, part: str = "net") -> Survey:
    """Accuracy and log loss of a part on validation data."""

    def measure(learner: Learner, batch: Batch) -> Mapping[str, float]:
        module = learner[part]
        with unseen(module):
            return sums(module(batch.views["x"])["logits"], batch.y)

    return Survey("validation", every_steps, batches, measure, report)


def write_predictions(path: Path, module: nn.Module, batches: Iterable[Batch], device: torch.device) -> None:
    """One row per sample: its id, its label, its log-probabilities. Written whole or not at all."""
    rows: list[dict[str, object]] = []
    for batch in batches:
        with unseen(module):
            log_probabilities = F.log_softmax(module(batch.to(device).views["x"])["logits"].float(), dim=-1)
        for sample_id, label, row in zip(
            batch.ids.tolist(), batch.y.tolist(), log_probabilities.cpu().tolist(), strict=True
        ):
            rows.append({"sample_id": sample_id, "label": label, "log_probabilities": row})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(pa.Table.from_pylist(rows, schema=PREDICTIONS), temporary)
    temporary.rename(path)
