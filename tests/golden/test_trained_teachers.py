"""Several teachers that were trained before, and what they say worked out once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from codistill import cached_teachers
from codistill.batch import Batch
from codistill.cached_teachers import Cached, CachedTeacher
from codistill.data.loader import training_batches
from codistill.data.split import TensorSplit
from codistill.describe import describe
from codistill.methods import plan
from codistill.phase import Replica
from codistill.recipes import open_recipe
from codistill.spec_errors import SpecError
from codistill.teachers import FrozenTeacher
from tests.support import final_weights, fingerprint, new_run, run_in_turns, small_spec

KD = "knowledge_distillation"


def test_an_ensemble_is_of_the_exports_that_it_names(tmp_path: Path) -> None:
    first = new_run(tmp_path, small_spec(method={"kind": "solo"}), "first")
    run_in_turns(first)
    of = [{"kind": "job", "job": "first", "replica": replica} for replica in (1, 0)]
    spec = small_spec(method={"kind": KD, "teacher": {"kind": "ensemble", "of": of}}, replicas={"count": 1})
    (phase,) = plan(spec, open_recipe(spec), Replica(0, 1, 0))
    (source,) = phase.teachers
    opening = SimpleNamespace(storage=tmp_path, place=lambda module: module)
    models = cast(Any, source).open(opening).models
    assert [fingerprint(model.state_dict()) for model in models] == [
        fingerprint(final_weights(first, replica)) for replica in (1, 0)
    ]
    assert (
        describe(spec)["phases"]["train"]["teachers_flops_per_step"]
        == 2 * 16 * describe(spec)["forward_flops_per_sample"]
    ), "where the teachers are not at hand, each is taken to be like the student"
    run_in_turns(new_run(tmp_path, spec, "taught"))


def test_ensembles_have_two_to_sixteen_members_which_are_named_whole() -> None:
    one = {"kind": "job", "job": "first"}
    for of, words in (([one], "at least 2"), ([one] * 17, "at most 16"), ([one, {"kind": "job"}], r"of\.1\.job")):
        with pytest.raises(SpecError, match=words):
            small_spec(method={"kind": KD, "teacher": {"kind": "ensemble", "of": of}}, replicas={"count": 1})
    with pytest.raises(SpecError, match="have no temperature"):
        small_spec(method={"kind": KD, "divergence": "logit_regression", "temperature": 2.0}, replicas={"count": 1})


# ---------------------------------------------------------------- worked out once


def test_a_run_is_the_same_with_predictions_that_were_worked_out_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for rounding, since a teacher is shown its samples in other batches; and each of them once."""
    asked: list[int] = []
    outputs = FrozenTeacher.outputs

    def noting(teacher: FrozenTeacher, batch: Batch) -> Any:
        asked.extend(batch.ids.tolist())
        return outputs(teacher, batch)

    monkeypatch.setattr(FrozenTeacher, "outputs", noting)
    ends: list[dict[str, torch.Tensor]] = []
    for cached in (False, True):
        asked.clear()
        method = {"kind": KD, "teacher": {"kind": "trained_first", "steps": 5}, "cache_predictions": cached}
        run = new_run(tmp_path / str(cached), small_spec(method=method, replicas={"count": 1}))
        run_in_turns(run)
        ends.append(final_weights(run, 0))
    assert len(asked) == len(set(asked)) == 12 * 16, "those of a pass that is not whole, and no other"
    for name, weights in ends[0].items():
        assert_close(ends[1][name], weights, atol=1e-6, rtol=0)


class Scaled(nn.Module):
    """Answers logits [x / scale, 0] to a view [N, 1] of numbers x."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, view: torch.Tensor) -> torch.Tensor:
        return torch.cat([view / self.scale, torch.zeros_like(view)], dim=-1)


def split_of(samples: int) -> TensorSplit:
    """Samples 0, 3, 6, ..., each a picture of its own id."""
    ids = torch.arange(samples) * 3
    return TensorSplit(ids, torch.zeros(samples, dtype=torch.int64), {"x": ids[:, None].float()})


def cached_teacher(split: TensorSplit, *scales: float) -> CachedTeacher:
    asked = FrozenTeacher([Scaled(scale) for scale in scales], "x")
    return CachedTeacher(asked, split, split.ids, torch.device("cpu"))


def test_who_is_asked_later_answers_what_was_said_before() -> None:
    split = split_of(600)  # three blocks, the last one not whole
    teacher = cached_teacher(split, 500.0, 1000.0)
    teacher.begin(0)
    teacher._split = cast(Any, None)
    teacher.begin(7)  # asks nobody
    ids = torch.tensor([1797, 0, 765])
    for answers, scale in zip(teacher.outputs(split.read(ids)), (500.0, 1000.0), strict=True):
        expected = torch.stack([ids / scale, torch.zeros(3)], dim=-1).log_softmax(-1)
        assert_close(answers["logits"], expected)
    stranger = replace(split.read(torch.tensor([0])), ids=torch.tensor([1]))
    with pytest.raises(KeyError, match="were not worked out"):
        teacher.outputs(stranger)


def test_what_would_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_teachers, "MOST_BYTES", 4 * 600 * 2)
    split = split_of(600)
    cached_teacher(split, 1.0).begin(0)
    with pytest.raises(ValueError, match=r"2 x 600 predictions of 2 numbers, 9,600 bytes; at most 4,800"):
        cached_teacher(split, 1.0, 2.0).begin(0)


def test_samples_that_look_different_each_time_are_refused() -> None:
    with pytest.raises(SpecError, match=r"recipe\.flip shows a sample in another random way each time"):
        small_spec(
            method={"kind": KD, "cache_predictions": True},
            recipe={"kind": "images", "flip": True},
            replicas={"count": 1},
        )
    unsteady = replace(split_of(4), augment=lambda view, ids, names: view + 1)
    source = Cached(cast(Any, SimpleNamespace(view="x")), lambda: (unsteady, unsteady.ids))
    with pytest.raises(ValueError, match="this recipe shows a sample in another random way"):
        source.open(cast(Any, None))


def test_what_is_kept_is_told_before() -> None:
    method = {"kind": KD, "cache_predictions": True, "teacher": {"kind": "job", "job": "first"}}
    facts = describe(small_spec(method=method, replicas={"count": 1}, training={"steps": 40}))
    assert facts["memory_bytes_per_rank"]["teachers"] == 4 * 200 * 10
    assert facts["phases"]["train"]["teachers_flops_per_step"] == 0


def test_the_samples_of_some_steps() -> None:
    spec = small_spec(data={"kind": "disjoint"})
    batches = training_batches(split_of(200), spec.data, Replica(1, 2, 0), 16)
    for steps, seen in ((1, 16), (6, 96), (7, 100), (1000, 100)):
        ids = batches.ids_until(steps)
        drawn = torch.cat([batches(step).ids for step in range(min(steps, 20))])
        assert len(ids) == seen
        assert torch.equal(ids, drawn.unique())
