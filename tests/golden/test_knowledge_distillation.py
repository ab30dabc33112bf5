"""Knowledge distillation on chosen logits, and teachers from a phase, a job and a registered model."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from codistill.checkpoint import load_newest
from codistill.data.catalog import register
from codistill.data.home import DataError
from codistill.methods import plan
from codistill.phase import Loss, Replica, Step
from codistill.recipes import open_recipe
from codistill.run_dir import RunDir, read_json, write_json
from codistill.spec_errors import SpecError
from tests.golden.said import S, Says, T, step_of
from tests.support import final_weights, fingerprint, new_run, run_in_turns, small_spec


def job(storage: Path, name: str, **method: Any) -> RunDir:
    return new_run(
        storage, small_spec(method={"kind": "knowledge_distillation", **method}, replicas={"count": 1}), name
    )


def loss_of(step: Step, **method: Any) -> Loss:
    spec = small_spec(method={"kind": "knowledge_distillation", **method}, replicas={"count": 1})
    (update,) = plan(spec, open_recipe(spec), Replica(0, 1, 0))[-1].updates
    return update.loss(step)


@pytest.mark.parametrize(
    ("method", "soft"),
    [
        ({"temperature": 1.0}, 0.0395369),
        ({"temperature": 2.0}, 0.0673717),
        ({"temperature": 4.0}, 0.0788547),
        ({"temperature": 100.0}, 0.0833259),
        ({"divergence": "logit_regression"}, 1 / 12),
        ({"divergence": "reverse_kl", "temperature": 1.0}, 0.0461001),
        ({"divergence": "cross_entropy", "temperature": 1.0}, 0.6611215),
    ],
    ids=str,
)
def test_the_loss_of_hinton(method: dict[str, Any], soft: float) -> None:
    step = step_of({"teacher": [{"logits": torch.tensor([T]).double()}]}, net=Says(logits=S))
    loss = loss_of(step, alpha=0.75, **method)
    assert loss.value.item() == pytest.approx(0.25 * 0.4076060 + 0.75 * soft, abs=1e-6)


def test_the_limit_of_high_temperature_has_the_gradient_of_a_regression() -> None:
    step = step_of({"teacher": [{"logits": torch.tensor([T]).double()}]}, net=Says(logits=S))
    loss_of(step, alpha=1.0, divergence="logit_regression").value.backward()
    assert_close(step.learner["net"].taps["logits"].grad, torch.tensor([[-1 / 6, 0, 1 / 6]], dtype=torch.float64))


def test_an_ensemble_teaches_the_mean_of_its_distributions() -> None:
    """Of logits [3, 0, 0] and [0, 3, 0] that is [0.4773608, 0.4773608, 0.0452785], not what mean logits give."""
    answers = [{"logits": torch.tensor([logits]).double()} for logits in ([3.0, 0, 0], [0, 3.0, 0])]
    loss = loss_of(step_of({"teacher": answers}, net=Says(logits=[0.0, 0, 0])), alpha=1.0, temperature=1.0)
    assert loss.value.item() == pytest.approx(0.2524787, abs=1e-6)


def test_the_teacher_of_a_first_phase_is_what_that_phase_ended_with(tmp_path: Path) -> None:
    """Larger than the student; the same through all of its training, and better than it was before the phase."""
    wide = {"kind": "digits", "width": 16, "train_size": 200}
    run = job(tmp_path, "kd", teacher={"kind": "trained_first", "steps": 60, "recipe": wide})
    at_end: list[str] = []

    def look(replica: int, step: int) -> None:
        found = load_newest(run.checkpoints("replica-0"), lambda name: True)
        if found is not None and "finished.teacher" in found.tensors:
            at_end.append(fingerprint(found.tensors["finished.teacher"]))

    (result,) = run_in_turns(run, before_step=look).values()
    assert len(at_end) >= 6
    assert len(set(at_end)) == 1
    assert result["steps"] == 72
    assert result["metrics"]["eval/teacher/accuracy"] > 0.6
    assert final_weights(run, 0)["head.weight"].shape == (10, 32), "the student is of the job's recipe"


def test_a_job_and_a_registered_model_teach_alike_if_they_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path / "data"))
    wide = {"kind": "digits", "width": 8, "train_size": 200}
    first = new_run(tmp_path, small_spec(method={"kind": "solo"}, recipe=wide, replicas={"count": 1}), "first")
    run_in_turns(first)
    register("models", "incumbent", first.export("replica-0"))
    students = []
    for name, teacher in {
        "of-job": {"kind": "job", "job": "first"},
        "of-model": {"kind": "model", "name": "incumbent"},
        "of-phase": {"kind": "trained_first", "steps": 12, "recipe": wide},
    }.items():
        run = job(tmp_path, name, teacher=teacher)
        run_in_turns(run)
        students.append(fingerprint(final_weights(run, 0)))
    assert students[0] == students[1] != students[2]


def test_with_alpha_1_the_labels_are_not_looked_at(tmp_path: Path) -> None:
    """A student of the same form, shown enough, says what its teacher says."""
    run = new_run(
        tmp_path,
        small_spec(
            method={"kind": "knowledge_distillation", "alpha": 1.0, "teacher": {"kind": "trained_first", "steps": 60}},
            training={"steps": 150, "batch_size": 64, "log_interval_steps": 10},
            replicas={"count": 1},
        ),
    )
    (result,) = run_in_turns(run).values()
    metrics = result["metrics"]
    assert metrics["eval/log_loss"] == pytest.approx(metrics["eval/teacher/log_loss"], abs=0.15)


def test_teachers_that_are_not_there_or_do_not_fit_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path / "data"))
    with pytest.raises(DataError, match="job 'nowhere' has left no export of replica-0"):
        run_in_turns(job(tmp_path, "a", teacher={"kind": "job", "job": "nowhere"}))
    with pytest.raises(DataError, match="there is no model 'nothing'"):
        run_in_turns(job(tmp_path, "b", teacher={"kind": "model", "name": "nothing"}))
    text = {"kind": "text", "context": 16, "width": 16, "heads": 2}
    misfit = job(tmp_path, "c", teacher={"kind": "trained_first", "recipe": text})
    with pytest.raises(ValueError, match=r"method.teacher.recipe: the teacher knows 256 classes, the student 10"):
        run_in_turns(misfit)
    with pytest.raises(SpecError, match="job"):
        job(tmp_path, "d", teacher={"kind": "job", "job": "../elsewhere"})


def test_an_export_that_was_changed_is_refused(tmp_path: Path) -> None:
    first = new_run(tmp_path, small_spec(method={"kind": "solo"}, replicas={"count": 1}), "first")
    run_in_turns(first)
    assert load_file(first.export("replica-0") / "model.safetensors")
    weights = first.export("replica-0") / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(DataError, match=r"model.safetensors .* is not what its manifest says"):
        run_in_turns(job(tmp_path, "kd", teacher={"kind": "job", "job": "first"}))


class Nasty:
    """What a pickle can do when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def packed(value: object) -> bytes:
    """As `torch.save` does it."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.mark.parametrize(
    "make", [pickle.dumps, lambda value: pickle.dumps(value, protocol=0), packed], ids=["5", "0", "torch"]
)
def test_code_in_the_place_of_weights_is_not_run(tmp_path: Path, make: Callable[[Nasty], bytes]) -> None:
    """With a manifest that agrees: whoever can write there can write that, too."""
    first = new_run(tmp_path, small_spec(method={"kind": "solo"}, replicas={"count": 1}), "first")
    run_in_turns(first)
    directory, mark = first.export("replica-0"), tmp_path / "was-run"
    content = make(Nasty(mark))
    (directory / "model.safetensors").write_bytes(content)
    manifest = read_json(directory / "manifest.json")
    manifest["sha256"]["model.safetensors"] = hashlib.sha256(content).hexdigest()
    write_json(directory / "manifest.json", manifest)
    with pytest.raises(DataError, match=r"the weights in .* do not fit"):
        run_in_turns(job(tmp_path, "kd", teacher={"kind": "job", "job": "first"}))
    assert not mark.exists()
