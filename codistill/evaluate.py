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

from codistill.batch import Batch, as_outputs
from codistill.losses import IGNORED
from codistill.phase import Learner, Survey
from codistill.randomness import unseen


def predictions_schema(classes: int) -> pa.Schema:
    """Of a predictions file: a row is one prediction, named by (sample_id, position)."""
    return pa.schema(
        [
            pa.field("sample_id", pa.int64()),
            pa.field("position", pa.int32()),  # the place in a sequence; 0 for what has none
            pa.field("label", pa.int64()),
            pa.field("log_probabilities", pa.list_(pa.float32(), classes)),
        ],
        metadata={"schema_version": "2"},
    )


def sums(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Of logits [..., classes] and labels [...]: how many predictions, how many right, the sum of their negative
    log-probabilities (nats). What has no label is no prediction."""
    flat = logits.float().reshape(-1, logits.shape[-1])
    return {
        "count": float((labels != IGNORED).sum()),
        "correct": float((flat.argmax(-1) == labels.reshape(-1)).sum()),
        "nats": float(F.cross_entropy(flat, labels.reshape(-1), ignore_index=IGNORED, reduction="sum")),
    }


def report(total: Mapping[str, float], whose: str = "") -> dict[str, float]:
    """Accuracy (share) and log loss (nats per prediction), under names that begin with `eval/` and `whose`."""
    count = total.get(f"{whose}count", 0.0)
    return {
        f"eval/{whose}accuracy": total[f"{whose}correct"] / count if count else math.nan,
        f"eval/{whose}log_loss": total[f"{whose}nats"] / count if count else math.nan,
    }


LOGITS: Mapping[str, str] = {"": "logits"}


def validation_survey(
    batches: Callable[[], Iterable[Batch]],
    *,
    every_steps: int,
    part: str = "net",
    taps: Mapping[str, str] = LOGITS,
) -> Survey:
    """Accuracy and log loss on validation data of taps of a part, each under its name: `eval/<name>accuracy`."""

    def measure(learner: Learner, batch: Batch) -> Mapping[str, float]:
        module = learner[part]
        with unseen(module):
            said = as_outputs(module(batch.views["x"]))
        each = {whose: sums(said[tap], batch.y) for whose, tap in taps.items()}
        return {f"{whose}{key}": value for whose, found in each.items() for key, value in found.items()}

    def reported(total: Mapping[str, float]) -> Mapping[str, float]:
        return {name: value for whose in taps for name, value in report(total, whose).items()}

    return Survey("validation", every_steps, batches, measure, reported)


def write_predictions(
    path: Path, module: nn.Module, batches: Iterable[Batch], device: torch.device, classes: int
) -> None:
    """One row per prediction: what it is of, its label, its log-probabilities. Written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    schema = predictions_schema(classes)
    with pq.ParquetWriter(temporary, schema) as writer:
        for batch in batches:
            with unseen(module):
                logits = as_outputs(module(batch.to(device).views["x"]))["logits"]
            writer.write_table(prediction_rows(batch, F.log_softmax(logits.float(), dim=-1).cpu(), schema))
    temporary.rename(path)


def prediction_rows(batch: Batch, log_probabilities: Tensor, schema: pa.Schema) -> pa.Table:
    """From log-probabilities [N, classes] or [N, L, classes] to rows of a predictions file; none for what has no
    label."""
    places = batch.y.numel() // len(batch)
    labels = batch.y.reshape(-1)
    known = labels != IGNORED
    flat = log_probabilities.reshape(-1, log_probabilities.shape[-1])[known]
    values = pa.array(flat.numpy().reshape(-1))
    columns = [
        pa.array(batch.ids.repeat_interleave(places)[known].numpy()),
        pa.array(torch.arange(places, dtype=torch.int32).repeat(len(batch))[known].numpy()),
        pa.array(labels[known].numpy()),
        pa.FixedSizeListArray.from_arrays(values, flat.shape[-1]),
    ]
    return pa.Table.from_arrays(columns, schema=schema)
