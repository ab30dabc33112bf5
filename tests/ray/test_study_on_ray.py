"""`codistill study --on auto`: the jobs of a study on a cluster that runs already, without a service."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codistill.run_dir import RunDir
from codistill.study import load_study, trials_of
from jobs import cli
from tests.support import SMALL, final_weights, fingerprint, new_run, run_in_turns

pytestmark = pytest.mark.ray


@pytest.mark.slow
def test_its_arms_are_trained_there_as_they_are_here_and_reported(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    file = tmp_path / "study.json"
    base = {**SMALL, "method": {"kind": "solo"}, "replicas": {"count": 1}}
    smoothed = {"method": {"kind": "label_smoothing", "epsilon": 0.3}}
    file.write_text(
        json.dumps({"name": "tiny", "seeds": [1], "base": base, "arms": {"solo": {}, "smoothed": smoothed}})
    )
    code = cli.run(["study", str(file), "--on", "auto", "--storage", str(tmp_path), "-o", "json"])
    said = capfd.readouterr()
    assert code == 0, said.err
    report = json.loads(said.out)
    assert report["missing"] == []
    assert [row["arm"] for row in report["comparison"]["rows"]] == ["solo", "smoothed"]
    for trial in trials_of(load_study(file)):
        run, here = RunDir(tmp_path, trial.job_id), new_run(tmp_path / "here", trial.spec, trial.arm)
        assert (run.attempt(1) / "driver.log").exists(), "of a driver on Ray"
        run_in_turns(here)
        assert fingerprint(final_weights(run, 0)) == fingerprint(final_weights(here, 0))
