"""What a spec accepts, and what it says about what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codistill.spec import AdamW, JobSpec
from codistill.spec_errors import MAX_SPEC_BYTES, SpecError, parse_spec
from codistill.spec_files import load_spec

NESTEROV = {"kind": "sgd", "momentum": 0.0, "nesterov": True}


@pytest.mark.parametrize(
    ("spec", "path", "message"),
    [
        ({"trainig": {}}, "trainig", "unknown key; did you mean 'training'?"),
        ({"method": {"kind": "codistillation", "wieght": 1}}, "method.wieght", "did you mean 'weight'?"),
        ({"method": {"kind": "codistilation"}}, "method.kind", "did you mean 'codistillation'?"),
        ({"exchange": {"topology": {"kind": "ring", "n": 2}}}, "exchange.topology.n", "known here: kind"),
        ({"exchange": {"topology": {}}}, "exchange.topology", "needs a 'kind', one of auto, all, ring"),
        ({"exchange": {"mode": "sync"}}, "exchange.mode", "'async' or 'lockstep'"),
        ({"training": {"steps": "600"}}, "training.steps", "valid integer"),
        ({"training": {"steps": 0}}, "training.steps", "greater than or equal to 1"),
        ({"name": "../../etc"}, "name", "match pattern"),
        ({"replicas": {"count": 1}}, "", "needs at least 2 replicas, replicas.count is 1"),
        ({"replicas": {"count": 17}}, "replicas.count", "less than or equal to 16"),
        ({"replicas": {"ranks": 65}}, "replicas.ranks", "less than or equal to 64"),
        ({"training": {"batch_size": 2000}}, "", "batch_size (2000) exceeds the 1000 training samples"),
        ({"training": {"batch_size": 600}, "data": {"kind": "disjoint"}}, "", "exceeds the 500 training samples"),
        ({"training": {"steps": 5, "schedule": {"kind": "cosine", "warmup_steps": 9}}}, "", "warmup_steps (9) exceeds"),
        ({"training": {"optimizer": NESTEROV}}, "training.optimizer", "nesterov needs momentum"),
        ({"controls": ["solo", "solo"]}, "", "controls names 'solo' twice"),
        ({"controls": ["sole"]}, "controls.0", "'solo' or 'smoothing'"),
        ({"controls": ["solo"], "method": {"kind": "solo"}}, "", "method 'solo' has no teachers; leave controls out"),
        ({"controls": ["smoothing"], "method": {"kind": "label_smoothing"}}, "", "'label_smoothing' has no teachers"),
        ({"method": {"kind": "label_smoothing", "epsilon": 1.5}}, "method.epsilon", "less than or equal to 1"),
        (
            {"method": {"kind": "codistillation", "divergence": "logit_regression", "temperature": 2.0}},
            "method",
            "logits, which have no temperature",
        ),
        ({"spec_version": 2}, "spec_version", "should be 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_and_where(spec: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(spec)
    problem = caught.value.problems[0]
    assert problem.path == path
    assert message in problem.message


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec({"sed": 1, "training": {"steps": 0}, "method": {"kind": "solo", "weight": 1.0}})
    assert {problem.path for problem in caught.value.problems} == {"sed", "training.steps", "method.weight"}


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"seed": NaN}', '{"seed": 1e999}', "[" * 100_000])
def test_what_is_no_spec_at_all(text: str) -> None:
    with pytest.raises(SpecError):
        parse_spec(text)


@given(
    st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.dictionaries(st.text(), inner))
)
def test_nothing_but_a_spec_error_comes_out(value: Any) -> None:
    for spec in (value, {"method": value}, {"exchange": {"topology": value}}, {"training": value}):
        try:
            found: list[Any] = [parse_spec(spec if isinstance(spec, dict) else str(spec))]
        except SpecError as error:
            found = error.problems
        assert found


def test_a_spec_survives_json() -> None:
    spec = parse_spec({"method": {"kind": "solo"}, "data": {"kind": "disjoint"}, "labels": {"team": "a"}})
    assert parse_spec(spec.model_dump_json()) == spec


def test_burn_in_is_two_fifths_unless_given() -> None:
    assert parse_spec({"training": {"steps": 1000}}).burn_in_steps == 400
    assert parse_spec({"method": {"kind": "codistillation", "burn_in_steps": 7}}).burn_in_steps == 7
    assert parse_spec({"method": {"kind": "solo"}}).burn_in_steps == 1000


def test_a_control_is_the_same_job_with_another_method() -> None:
    falling = {"weight_schedule": {"kind": "linear", "final_factor": 0.0}}
    given = {
        "seed": 7, "data": {"kind": "disjoint"}, "training": {"steps": 200}, "replicas": {"count": 3},
        "method": {"kind": "codistillation", "weight": 0.5, "temperature": 2.0, **falling},
    }  # fmt: skip
    spec = parse_spec(given | {"controls": ["smoothing", "solo"]})
    smoothed = {"kind": "label_smoothing", "epsilon": 0.25, "weight": 0.5, "burn_in_steps": 80, **falling}
    assert spec.arms == ("replica", "smoothing", "solo")
    assert spec.for_arm("replica") == spec
    assert spec.for_arm("solo") == parse_spec(given | {"method": {"kind": "solo"}})
    assert spec.for_arm("smoothing", epsilon=0.25) == parse_spec(given | {"method": smoothed})
    assert not spec.for_arm("solo").exchanges
    with pytest.raises(ValueError, match="needs epsilon"):
        spec.for_arm("smoothing")
    with pytest.raises(ValueError, match="has no teachers"):
        spec.for_arm("solo").for_arm("solo")


def test_label_smoothing_exchanges_nothing() -> None:
    spec = parse_spec({"method": {"kind": "label_smoothing", "burn_in_steps": 5}, "replicas": {"count": 1}})
    assert (spec.exchanges, spec.burn_in_steps) == (False, spec.training.steps)
    assert spec.arms == ("replica",)


def test_files(tmp_path: Path) -> None:
    (tmp_path / "good.toml").write_text('seed = 3\n[method]\nkind = "solo"\n')
    assert load_spec(tmp_path / "good.toml").seed == 3
    (tmp_path / "bad.toml").write_text("seed = \n")
    (tmp_path / "bad.yaml").write_text("seed: 3\n  name: [")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    (tmp_path / "big.json").write_text(" " * (MAX_SPEC_BYTES + 1))
    (tmp_path / "dated.toml").write_text("seed = 2020-01-01\n")
    for name, message in {
        "bad.toml": "is not valid TOML",
        "big.json": "at most 262,144 are accepted",
        "dated.toml": "JSON values only",
        "missing.toml": "No such file",
        "spec.ini": "ends in .toml, .yaml, .yml, .json",
        "bad.yaml": "is not valid YAML: .* line 2",
        "bad.json": "is not valid JSON",
        "deep.json": "is not valid JSON",
        "list.yaml": "should be an object",
        "latin.toml": "is not valid TOML",
    }.items():
        with pytest.raises(SpecError, match=message):
            load_spec(tmp_path / name)


def test_files_are_merged_from_left_to_right(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("a.toml", "b.yaml", "c.json"))
    first.write_text(
        'name = "first"\ncontrols = ["solo", "smoothing"]\n[training]\nsteps = 5\nbatch_size = 7\n'
        '[training.optimizer]\nkind = "sgd"\nmomentum = 0.5\n'
    )
    second.write_text("name: second\ncontrols: [solo]\ntraining:\n  steps: 6\n  optimizer:\n    kind: adamw\n")
    third.write_text('{"training": {"steps": 8}}')
    spec = load_spec(first, second, third, settings={"seed": 4, "training": {"batch_size": 9}})
    assert (spec.name, spec.seed, spec.controls) == ("second", 4, ("solo",))
    assert (spec.training.steps, spec.training.batch_size) == (8, 9)
    assert spec.training.optimizer == AdamW(), "another kind begins anew"
    assert load_spec(second, first).training.steps == 5
    # What YAML takes for something else is refused, never guessed.
    for text, path in (
        ("name: no", "name"),
        ("training:\n  optimizer:\n    kind: sgd\n    momentum: 1e-5", "momentum"),
    ):
        second.write_text(text)
        with pytest.raises(SpecError) as refused:
            load_spec(second)
        assert refused.value.problems[0].path.endswith(path)


def test_every_field_is_described() -> None:
    """The JSON Schema is the documentation of the spec: a bare number would leave a user guessing."""
    schema = JobSpec.model_json_schema()
    assert schema["$defs"]["Exchange"]["properties"]["interval_steps"]["description"].startswith("Optimizer steps")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"exchange": {}},
            "exchange.mode is 'async', and in method 'diloco' .*; set exchange.mode = .lockstep",
        ),
        (
            {"exchange": {"mode": "lockstep", "topology": {"kind": "ring"}}},
            "exchange.topology is .ring. among 2",
        ),
        ({"replicas": {"count": 5}}, "exchange.topology is 'auto' among 5 replicas.* use kind = 'all'"),
        ({"exchange": {"mode": "lockstep", "max_lag_steps": 3}}, "exchange.max_lag_steps would leave replicas out"),
        (
            {"exchange": {"mode": "lockstep", "max_offset_steps": 3}},
            "max_offset_steps would leave replicas out",
        ),
        (
            {"exchange": {"mode": "lockstep", "currency": {"kind": "predictions"}}},
            "exchange.currency is 'predictions', and method",
        ),
        ({"training": {"ema_decay": 0.9}}, "training.ema_decay averages one replica's way"),
        ({"controls": ["solo"]}, "method 'diloco' has no teachers; leave controls out"),
    ],
)
def test_a_mean_of_all_replicas_or_none(change: dict[str, Any], words: str) -> None:
    given = {"method": {"kind": "diloco"}, "exchange": {"mode": "lockstep"}}
    assert parse_spec(given).averages
    with pytest.raises(SpecError, match=words):
        parse_spec({**given, **change})
