"""A recipe that comes with a package of its own: installed, found by name, trained."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from codistill.recipes import RecipeUnavailable, open_recipe
from codistill.run_dir import RunDir, read_json
from codistill.spec_errors import parse_spec

PACKAGE = Path(__file__).parents[2] / "own_recipe"
SPEC: dict[str, Any] = {
    "recipe": {"kind": "installed", "name": "tumours", "options": {"width": 8}},
    "training": {"steps": 60, "batch_size": 16, "optimizer": {"kind": "sgd", "learning_rate": 0.02}},
    "exchange": {"mode": "lockstep", "interval_steps": 5},
    "replicas": {"count": 2},
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place in which the example package is installed."""
    source, target = tmp_path_factory.mktemp("source") / "package", tmp_path_factory.mktemp("site")
    shutil.copytree(PACKAGE, source)  # building leaves files beside the sources
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(target), str(source)], check=True, timeout=60)
    return target


@pytest.mark.slow
def test_an_installed_recipe_is_trained_by_name(site: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(SPEC))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), os.environ["PYTHONPATH"]])}
    command = [sys.executable, "-P", "-m", "codistill.local", str(spec), "--storage", str(tmp_path), "--job", "own"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunDir(tmp_path, "own")
    result = read_json(run.result(1)) or {}
    for name in ("replica-0", "replica-1"):
        assert result["replicas"][name]["metrics"]["eval/accuracy"] > 0.9
        assert result["replicas"][name]["bytes_received"] > 0
        assert read_json(run.export(name) / "config.json") == {"classes": 2, "width": 8}
        assert "the package that the recipe comes from is needed" in (run.export(name) / "README.md").read_text()


def test_a_model_may_answer_logits_alone_and_a_sample_may_be_made_up(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(site))
    recipe = open_recipe(parse_spec(SPEC))
    example = recipe.example(4)
    assert recipe.build_model()(example.views["x"]).shape == (4, 2)
    sizes = [len(recipe.split(name).ids) for name in ("train", "validation", "test")]  # pyright: ignore
    assert sizes == [341, 114, 114]
    logits = torch.tensor([[0.0, 1.0]])
    batch = recipe.split("test").read(torch.tensor([1]))
    expected = torch.log1p(torch.exp(1.0 - 2.0 * batch.y))
    assert recipe.task_loss({"logits": logits}, batch) == pytest.approx(float(expected))


def test_what_is_wrong_with_a_recipe_is_said(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        RecipeUnavailable, match=r"declares a recipe 'tumours' \(entry points of codistill.recipes: none"
    ):
        open_recipe(parse_spec(SPEC))
    monkeypatch.syspath_prepend(str(site))
    wrong = {**SPEC, "recipe": {**SPEC["recipe"], "options": {"depth": 3}}}
    with pytest.raises(ValueError, match=r"recipe.options of 'tumours': .*unexpected keyword argument 'depth'"):
        open_recipe(parse_spec(wrong))
