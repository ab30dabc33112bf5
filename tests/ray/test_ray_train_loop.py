"""A loop of one's own inside a Ray Train function: the documentation's example."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import ray.cloudpickle

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_workers_of_ray_train_teach_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("ray_train_loop")
    ray.cloudpickle.register_pickle_by_value(example)  # workers do not know where the example lies
    metrics = example.main(str(tmp_path / "two"))
    assert metrics["accuracy"] > 0.9
    assert len(metrics["versions_heard"]) >= 2
    assert {path.name for path in (tmp_path / "two" / "exchange").iterdir()} == {"replica-0", "replica-1"}
