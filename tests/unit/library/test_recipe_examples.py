"""Every example spec for a few steps, on synthetic data where the recipe has a data set of its own."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from codistill.evaluate import predictions_schema
from codistill.recipes import open_recipe
from codistill.spec_errors import parse_spec
from codistill.spec_files import load_spec
from jobs import examples
from tests.datasets import synthetic_datasets
from tests.support import merge, new_run, run_in_turns

SHORT = {
    "training": {"steps": 4, "batch_size": 16, "log_interval_steps": 1, "schedule": {"kind": "constant"}},
    "exchange": {"mode": "lockstep", "interval_steps": 1},
}
EXAMPLES = sorted(Path(examples.__file__).parent.rglob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_to_its_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path / "data"))
    synthetic_datasets(tmp_path / "data")
    example = load_spec(path).model_dump(mode="json")
    teaches = example["method"]["kind"] == "codistillation"
    few = {"evaluation_size": 8} if "evaluation_size" in example["recipe"] else {}
    few |= {"train_size": 100 if example["recipe"]["kind"] == "digits" else None}
    recipes = [merge(recipe, few) for recipe in example["recipes"]]
    short = {**SHORT, "recipe": few, "recipes": recipes, **({"method": {"burn_in_steps": 2}} if teaches else {})}
    if example["method"].get("teacher", {}).get("kind") == "trained_first":
        short |= {"method": {"teacher": {"steps": 4}}}
    if example["method"].get("scheme", {}).get("kind") == "two_stage":
        short["method"] |= {"scheme": {"hint_steps": 4}}
    if others := example["method"].get("others"):
        short["method"] = {"others": [merge(other, few) for other in others]}
    spec = parse_spec(merge(example, short))
    places = example["recipe"].get("context", 1)
    run = new_run(tmp_path / "runs", spec)
    results = run_in_turns(run)
    recipe = open_recipe(spec)
    for index in range(spec.replicas.count):
        assert results[index]["outcome"] == "succeeded"
        predictions = run.replica(1, f"replica-{index}") / "predictions" / "test.parquet"
        table = pq.read_table(predictions)
        assert table.schema.equals(predictions_schema(recipe.classes))
        ids = recipe.split("test").ids
        assert table["sample_id"].to_pylist() == ids.repeat_interleave(places).tolist()
        first = table["log_probabilities"][0].as_py()
        assert len(first) == recipe.classes
        assert sum(math.exp(value) for value in first) == pytest.approx(1, abs=1e-4)
        assert (run.export(f"replica-{index}") / "model.safetensors").exists()
    assert (results[0]["bytes_received"] > 0) == teaches
