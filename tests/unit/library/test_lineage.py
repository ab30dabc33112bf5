"""What a job that goes on from another may change."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from codistill.lineage import FORK, RESUME, Way, changed, child_spec, merged
from codistill.spec import Critics, JobSpec
from codistill.spec_errors import SpecError
from tests.support import merge, small_spec

SPEC = small_spec(name="parent", labels={"team": "a"})

FITS_BOTH: list[dict[str, Any]] = [
    {},
    {"name": "child", "priority": 3, "labels": {"team": "b"}},
    {"limits": {"max_runtime_s": 60}},
    {"replicas": {"cpus": 2.0, "gpus": 0.5}},
    {"training": {"steps": 13}},
    {"training": {"log_interval_steps": 5, "evaluate_interval_steps": 5, "checkpoint_interval_steps": 6}},
    {"training": {"trackers": ["tensorboard"], "loader": {"workers": 1}}},
    {"exchange": {"transport": {"kind": "files"}, "keep_snapshots": True}},
]
FITS_FORK: list[tuple[dict[str, Any], str]] = [
    ({"training": {"steps": 11}}, "training.steps"),
    ({"seed": 1}, "seed"),
    ({"data": {"kind": "disjoint"}}, "data.kind"),
    ({"training": {"optimizer": {"learning_rate": 0.1}}}, "training.optimizer.learning_rate"),
    ({"training": {"optimizer": {"kind": "adamw"}}}, "training.optimizer.kind"),
    ({"training": {"schedule": {"kind": "constant"}}}, "training.schedule.kind"),
    ({"training": {"batch_size": 8}}, "training.batch_size"),
    ({"method": {"weight": 0.5}}, "method.weight"),
    ({"exchange": {"interval_steps": 3}}, "exchange.interval_steps"),
    ({"exchange": {"mode": "async"}}, "exchange.mode"),
]
FITS_NEITHER: list[tuple[dict[str, Any], str]] = [
    ({"recipe": {"width": 8}}, "recipe.width"),
    ({"recipe": {"kind": "tabular"}}, "recipe.kind"),
    ({"replicas": {"count": 3}}, "replicas.count"),
    ({"method": {"kind": "solo"}}, "method.kind"),
    ({"method": {"critics": {}}}, "method.critics"),
    ({"method": {"target": {"kind": "min_logit"}}}, "method.target.kind"),
    ({"training": {"decay_vectors": False}}, "training.decay_vectors"),
    ({"training": {"ema_decay": 0.9}}, "training.ema_decay"),
    ({"training": {"precision": "bf16"}}, "training.precision"),
]


def refusal(changes: dict[str, Any], way: Way) -> dict[str, str]:
    """Messages by path; empty when the changes are accepted."""
    try:
        child_spec(SPEC, changes, way)
    except SpecError as error:
        return {problem.path: problem.message for problem in error.problems}
    return {}


@pytest.mark.parametrize("changes", FITS_BOTH, ids=str)
@pytest.mark.parametrize("way", get_args(Way))
def test_what_leaves_the_mathematics_alone_may_always_change(changes: dict[str, Any], way: Way) -> None:
    child = child_spec(SPEC, changes, way)
    assert child == small_spec(**merge({"name": "parent", "labels": {"team": "a"}}, changes))


@pytest.mark.parametrize(("changes", "path"), FITS_FORK, ids=str)
def test_what_another_training_may_change(changes: dict[str, Any], path: str) -> None:
    refused = refusal(changes, "resume")
    assert list(refused) == [path]
    assert ("a fork may" in refused[path]) == (path != "training.steps")
    assert refusal(changes, "fork") == {}
    assert path in changed(SPEC, child_spec(SPEC, changes, "fork"))


@pytest.mark.parametrize(("changes", "path"), FITS_NEITHER, ids=str)
def test_what_a_checkpoint_would_not_fit(changes: dict[str, Any], path: str) -> None:
    assert "a resumed job may not change this; it may change name, labels" in refusal(changes, "resume")[path]
    assert "a fork may not change this" in refusal(changes, "fork")[path]


def test_every_bad_key_is_named_at_once_and_unknown_ones_as_ever() -> None:
    assert sorted(refusal({"seed": 1, "recipe": {"width": 8}, "priority": 2}, "resume")) == ["recipe.width", "seed"]
    assert "did you mean 'steps'" in refusal({"training": {"stepz": 3}}, "resume")["training.stepz"]


def test_more_steps_leave_the_burn_in_where_it_was() -> None:
    parent = small_spec(training={"steps": 20}, method={"burn_in_steps": None})
    assert parent.burn_in_steps == 8
    for way, burn_in in (("resume", 8), ("fork", 16)):
        child = child_spec(parent, {"training": {"steps": 40}}, way)
        assert (child.training.steps, child.burn_in_steps) == (40, burn_in)


def test_a_fork_has_no_controls() -> None:
    parent = small_spec(controls=["solo"])
    assert child_spec(parent, {}, "resume").controls == ("solo",)
    with pytest.raises(SpecError, match=r"controls: a fork begins with trained weights.*set controls to \[\]"):
        child_spec(parent, {}, "fork")
    assert child_spec(parent, {"controls": []}, "fork").controls == ()


def test_tables_are_merged_lists_replaced_and_another_kind_begins_anew() -> None:
    base = {"a": {"kind": "x", "p": 1, "q": 2}, "b": [1, 2], "c": 1}
    assert merged(base, {"a": {"p": 3}, "b": [3]}) == {"a": {"kind": "x", "p": 3, "q": 2}, "b": [3], "c": 1}
    assert merged(base, {"a": {"kind": "y", "r": 1}}) == {"a": {"kind": "y", "r": 1}, "b": [1, 2], "c": 1}
    assert merged(base, {"a": {"kind": "x", "q": 5}})["a"] == {"kind": "x", "p": 1, "q": 5}


def test_every_key_of_the_table_is_one_of_the_spec() -> None:
    methods = get_args(JobSpec.model_fields["method"].annotation)
    of_methods = {key for method in methods for key in method.model_fields}
    of_methods |= {f"critics.{key}" for key in Critics.model_fields}
    for path in (*RESUME, *FORK):
        top, _, rest = path.partition(".")
        field = JobSpec.model_fields[top]
        if rest:
            assert rest in (of_methods if top == "method" else type(field.default).model_fields), path
    assert set(RESUME) <= set(FORK)
