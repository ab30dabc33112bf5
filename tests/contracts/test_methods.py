"""What every method promises, whichever it is: the laws and checks of distillation, and coming back from a kill."""

from __future__ import annotations

import ast
import inspect
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_model
from torch import nn

from codistill import losses, methods, records, training
from codistill.data.home import data_home
from codistill.evaluate import report, sums
from codistill.exchange.transport import Hub, connect_files
from codistill.peers import PeerTeachers
from codistill.phase import Loss, Phase, Step, Update
from codistill.ranks import join_group
from codistill.recipes import open_recipe
from codistill.replica import train_replica
from codistill.run_dir import RunDir
from codistill.spec import JobSpec, Method
from codistill.teachers import FrozenTeacher
from tests.datasets import write_images
from tests.processes import fork_server
from tests.support import final_weights, fingerprint, merge, new_run, run_in_turns, small_spec


@dataclass(frozen=True)
class Case:
    """A method in a small job of 12 steps, with a checkpoint every 5."""

    method: Mapping[str, Any]
    off: Mapping[str, Any]
    """Settings under which it is plain training."""
    replicas: int = 1
    steps_before: int = 0
    """Of phases before the last."""
    exchange: Mapping[str, Any] = field(default_factory=dict[str, Any])
    on_ranks: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Settings under which several ranks are one process, where in others they are not."""
    mixed: bool = False
    """Whether replica 1, or of one replica the second network, trains a wider model."""


ATTENTION = {"divergence": "kl", "target": {"kind": "attention", "itself": True}}
BRANCHES_OFF = {"label_weight": 0.0, "weight": 0.0}
CASES = {
    "solo": Case({"kind": "solo"}, {}),
    "label_smoothing": Case({"kind": "label_smoothing", "burn_in_steps": 3}, {"weight": 0.0}),
    "codistillation": Case({"kind": "codistillation", "burn_in_steps": 3}, {"weight": 0.0}, replicas=2),
    "codistillation, predictions": Case(
        {"kind": "codistillation", "burn_in_steps": 3},
        {"weight": 0.0},
        replicas=2,
        exchange={"currency": {"kind": "predictions"}},
    ),
    "codistillation, mixed": Case(
        {"kind": "codistillation", "burn_in_steps": 3}, {"weight": 0.0}, replicas=2, mixed=True
    ),
    "codistillation, min_logit": Case(
        {"kind": "codistillation", "burn_in_steps": 3, "target": {"kind": "min_logit"}}, {"weight": 0.0}, replicas=2
    ),
    # Burn-in beyond the first checkpoint: what rests then has an optimizer without a state.
    "codistillation, attention and critics": Case(
        {"kind": "codistillation", "burn_in_steps": 6, **ATTENTION, "critics": {"channels": 4, "learning_rate": 0.001}},
        {"weight": 0.0, "critics": {"channels": 4, "learning_rate": 0.0}},
        replicas=2,
    ),
    "knowledge_distillation": Case(
        {"kind": "knowledge_distillation", "teacher": {"kind": "trained_first", "steps": 8}},
        {"alpha": 0.0},
        steps_before=8,
    ),
    "knowledge_distillation, cached": Case(
        {
            "kind": "knowledge_distillation",
            "divergence": "reverse_kl",
            "cache_predictions": True,
            "teacher": {"kind": "trained_first", "steps": 8},
        },
        {"alpha": 0.0},
        steps_before=8,
    ),
    "hints": Case(
        {
            "kind": "hints",
            "teacher": {"kind": "trained_first", "steps": 4},
            "scheme": {"kind": "two_stage", "hint_steps": 6},
        },
        {"scheme": {"kind": "two_stage", "hint_steps": 0, "weight": 0.0}},
        steps_before=10,
    ),
    "hints, one stage": Case(
        {
            "kind": "hints",
            "teacher": {"kind": "trained_first", "steps": 8},
            "scheme": {"kind": "one_stage", "weight": 1.0},
        },
        {"scheme": {"kind": "one_stage", "weight": 0.0}},
        steps_before=8,
    ),
    "churn_reduction": Case(
        {"kind": "churn_reduction", "teacher": {"kind": "trained_first", "steps": 8}}, {"alpha": 0.0}, steps_before=8
    ),
    "deep_mutual_learning": Case({"kind": "deep_mutual_learning"}, {"weight": 0.0}),
    "deep_mutual_learning, sequential": Case(
        {"kind": "deep_mutual_learning", "nets": 3, "order": "sequential"}, {"weight": 0.0}
    ),
    "deep_mutual_learning, ensemble": Case(
        {"kind": "deep_mutual_learning", "nets": 3, "form": "ensemble"}, {"weight": 0.0}
    ),
    "kdcl": Case({"kind": "kdcl"}, {"weight": 0.0}),
    "kdcl, linear": Case({"kind": "kdcl", "target": {"kind": "linear"}}, {"weight": 0.0}),
    "kdcl, general": Case(
        {"kind": "kdcl", "nets": 3, "target": {"kind": "general", "held_out": 40, "refresh_steps": 4}},
        {"weight": 0.0, "target": {"kind": "general", "held_out": 0}},
    ),
    "kdcl, mixed": Case({"kind": "kdcl"}, {"weight": 0.0}, mixed=True),
    "deep_mutual_learning, mixed": Case({"kind": "deep_mutual_learning"}, {"weight": 0.0}, mixed=True),
    "afd": Case(
        {"kind": "afd", "channels": 4, "adversarial_learning_rate": 0.001},
        {"weight": 0.0, "adversarial_learning_rate": 0.0},
        on_ranks={"adversarial_learning_rate": 2e-5},
    ),
    "be_your_own_teacher": Case(
        {"kind": "be_your_own_teacher"}, {"label_weight": 0.0, "weight": 0.0, "feature_weight": 0.0}
    ),
    # The gate normalises over a rank's share of the batch, as any BatchNorm does: ranks differ once it is heard.
    "one": Case({"kind": "one"}, BRANCHES_OFF, on_ranks=BRANCHES_OFF),
    "okddip": Case({"kind": "okddip", "nets": 3}, BRANCHES_OFF),
    "okddip, networks": Case({"kind": "okddip", "nets": 3, "split": 0}, {"weight": 0.0}),
    "feature_fusion_learning": Case({"kind": "feature_fusion_learning"}, BRANCHES_OFF),
    "cheap_convolutions": Case({"kind": "cheap_convolutions", "nets": 2}, BRANCHES_OFF),
    # Of one replica, whose mean is itself; those of several are killed in tests/golden/test_averaging.py.
    "local_sgd": Case({"kind": "local_sgd"}, {}),
    "diloco": Case({"kind": "diloco"}, {"outer_learning_rate": 1.0, "outer_momentum": 0.0}),
}

CNN = {"kind": "digits", "width": 4, "train_size": 200, "batch_norm": True}
DROPPING_MLP = {"kind": "images", "model": {"kind": "mlp", "width": 8, "layers": 2, "dropout": 0.3}}
every_method = pytest.mark.parametrize("name", CASES)


WITH_TEACHERS = ("codistillation", "knowledge_distillation", "hints", "churn_reduction")


def job(storage: Path, name: str, recipe: Mapping[str, Any], **method: Any) -> RunDir:
    case = CASES[name]
    spec = small_spec(
        recipe=recipe,
        method={**case.method, **beside(case, recipe), **method},
        replicas={"count": case.replicas},
        exchange=case.exchange,
        recipes=[recipe, wider(recipe)] if case.mixed and case.replicas > 1 else [],
    )
    return new_run(storage, spec)


def beside(case: Case, recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {"others": [wider(recipe)]} if case.mixed and case.replicas == 1 else {}


def wider(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return merge(recipe, {"model": {"width": 12}} if "model" in recipe else {"width": 6})


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "data")
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path / "data"))


def test_no_method_is_without_a_case() -> None:
    kinds = {choice.model_fields["kind"].default for choice in get_args(get_args(Method)[0])}
    assert {case.method["kind"] for case in CASES.values()} == kinds


# ---------------------------------------------------------------- U1, L4: switched off, it is plain training


@every_method
@pytest.mark.parametrize("recipe", [CNN, DROPPING_MLP], ids=["batch norm", "dropout"])
@pytest.mark.usefixtures("images")
def test_switched_off_it_is_the_solo_run_bit_for_bit(tmp_path: Path, name: str, recipe: Mapping[str, Any]) -> None:
    """Hence neither a teacher's forward nor a second one of its own changes a buffer or draws a random number of the
    student's."""
    off = job(tmp_path / "off", name, recipe, **CASES[name].off)
    solo = job(tmp_path / "solo", "solo", recipe)
    run_in_turns(off)
    run_in_turns(solo)
    assert fingerprint(final_weights(off, 0)) == fingerprint(final_weights(solo, 0))


# ---------------------------------------------------------------- L1, U2: targets carry no gradient


@every_method
@pytest.mark.usefixtures("images")
def test_targets_and_teachers_carry_no_gradient(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = job(tmp_path, name, DROPPING_MLP)
    taught = 0

    def watched(update: Update) -> Update:
        def loss(step: Step) -> Loss:
            nonlocal taught
            for said in (outputs for answers in step.targets.values() for outputs in answers):
                taught += 1
                assert not any(tap.requires_grad for tap in said.values())
            return update.loss(step)

        return replace(update, loss=loss)

    def plan(*asked: Any) -> list[Phase]:
        return [replace(p, updates=[watched(update) for update in p.updates]) for p in methods.plan(*asked)]

    opened: list[nn.Module] = []
    monkeypatch.setattr(training, "plan", plan)
    monkeypatch.setattr(FrozenTeacher, "outputs", noting(FrozenTeacher.outputs, opened))
    monkeypatch.setattr(PeerTeachers, "outputs", noting(PeerTeachers.outputs, opened))
    run_in_turns(run)
    assert bool(opened) == (name.partition(",")[0] in WITH_TEACHERS and "predictions" not in name)
    assert (taught > 0) == (bool(opened) or name == "codistillation, predictions")
    for parameter in (parameter for module in opened for parameter in module.parameters()):
        assert not parameter.requires_grad
        assert parameter.grad is None


def noting(outputs: Callable[[Any, Any], Any], into: list[nn.Module]) -> Callable[[Any, Any], Any]:
    def noted(teacher: Any, batch: Any) -> Any:
        into.extend(teacher.models if isinstance(teacher, FrozenTeacher) else teacher._modules.values())
        return outputs(teacher, batch)

    return noted


# ---------------------------------------------------------------- L2, L3


def test_no_method_has_a_divergence_of_its_own() -> None:
    """Sums over classes, means over places, temperatures and float32 are settled in `losses` and `combine` alone."""
    for module in (value for value in vars(methods).values() if inspect.ismodule(value)):
        tree = ast.parse(inspect.getsource(module))
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert used.isdisjoint({"softmax", "log_softmax", "kl_div", "cross_entropy", "functional"}), module.__name__


def test_several_targets_at_temperature_1_are_one_mixed_target() -> None:
    """So weights that do not add up to 1 are a learning rate in disguise, and `alpha` is taken off the labels."""
    torch.manual_seed(0)
    student = torch.randn(5, 4, dtype=torch.float64)
    targets = torch.randn(3, 5, 4, dtype=torch.float64).log_softmax(-1)
    weights = [0.5, 1.0, 0.75]
    apart = sum(w * losses.soft_cross_entropy(t, student) for w, t in zip(weights, targets, strict=True))
    mixed = sum(w * t.exp() for w, t in zip(weights, targets, strict=True)) / sum(weights)
    torch.testing.assert_close(apart, sum(weights) * losses.soft_cross_entropy(mixed.log(), student))


# ---------------------------------------------------------------- U6: killed anywhere, it ends where it would have


class Killed(Exception):
    """In the place of a signal: nothing more is written, and nothing is caught on the way out."""


@cache
def undisturbed(name: str, storage: Path) -> list[str]:
    run = job(storage / name.replace(" ", ""), name, CNN)
    run_in_turns(run)
    return [fingerprint(final_weights(run, index)) for index in range(CASES[name].replicas)]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calm")


@every_method
@pytest.mark.parametrize("at", [1, 7, -1], ids=["at once", "first phase", "last step"])
def test_killed_and_resumed_it_ends_bit_for_bit_the_same(tmp_path: Path, calm: Path, name: str, at: int) -> None:
    run, hub = job(tmp_path, name, CNN), Hub()
    step_of_death = at % (12 + CASES[name].steps_before)

    def die(replica: int, step: int) -> None:
        if step == step_of_death:
            raise Killed

    with pytest.raises(Killed):
        run_in_turns(run, hub=hub, before_step=die)
    run.start_attempt(2, time.time())
    ended = run_in_turns(run, hub=hub, fence=2)
    assert {entry["steps"] for entry in ended.values()} == {12 + CASES[name].steps_before}
    assert [fingerprint(final_weights(run, i)) for i in range(CASES[name].replicas)] == undisturbed(name, calm)
    steps, _ = records.values(records.read(run, "replica-0", "metrics"), "train/loss")
    assert steps == list(range(1, 13 + CASES[name].steps_before)), "every step of every phase once"


# ---------------------------------------------------------------- U8: what is exported


@every_method
def test_the_export_is_the_recipes_model_and_as_good_as_was_measured(tmp_path: Path, name: str) -> None:
    run = job(tmp_path, name, CNN)
    result = run_in_turns(run)[0]
    recipe = open_recipe(run.read_spec())
    model = recipe.build_model()
    assert set(final_weights(run, 0)) == set(model.state_dict())
    load_model(model, str(run.export("replica-0") / "model.safetensors"))
    validation = recipe.split("validation")
    batch = validation.read(validation.ids)
    with torch.no_grad():
        said = model.eval()(batch.views["x"])["logits"]
    measured = report(sums(said, batch.y))
    assert {key: result["metrics"][key] for key in measured} == pytest.approx(measured, abs=1e-6)


# ---------------------------------------------------------------- L5, U7: several ranks are one

ALONE_IN_ITS_JOB = [name for name, case in CASES.items() if case.replicas == 1]
PAIRS: dict[str, dict[str, Any]] = {
    "attention": {**ATTENTION, "critics": {"channels": 4}},
    "linear": {"target": {"kind": "linear"}},
    "guard": {"harm_guard": True},
}


def every_job_as_one_of_two_ranks(storage: Path, replica: int, rank: int, data_home: str) -> None:
    """A process for all of them, since most of the time goes into starting one; of replica 1, for those of pairs."""
    os.environ["CODISTILL_DATA"] = data_home
    ranks = join_group(f"file://{storage}/rendezvous-{replica}", rank, 2, on_gpu=False)
    for pair in PAIRS:
        train_replica(RunDir(storage, pair), fence=1, index=replica, connect=connect_files, ranks=ranks)
    for number in range(len(ALONE_IN_ITS_JOB) if replica == 0 else 0):
        run = RunDir(storage, f"job-{number}")
        train_replica(run, fence=1, index=0, connect=connect_files, ranks=ranks)
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("images")
def test_two_ranks_equal_one_process_in_every_method(tmp_path: Path) -> None:
    mlp = {**DROPPING_MLP, "model": {"kind": "mlp", "width": 8, "layers": 2}}

    def spec_of(name: str, ranks: int) -> JobSpec:
        method = {**CASES[name].method, **beside(CASES[name], mlp), **CASES[name].on_ranks}
        return small_spec(recipe=mlp, method=method, replicas={"count": 1, "ranks": ranks})

    def pair_of(name: str, ranks: int) -> JobSpec:
        return small_spec(recipe=mlp, method=PAIRS[name], replicas={"count": 2, "ranks": ranks})

    for name in PAIRS:
        new_run(tmp_path, pair_of(name, 2), name)
    for number, name in enumerate(ALONE_IN_ITS_JOB):
        new_run(tmp_path, spec_of(name, 2), f"job-{number}")
    children = [
        fork_server().Process(target=every_job_as_one_of_two_ranks, args=(tmp_path, replica, rank, str(data_home())))
        for replica in range(2)
        for rank in range(2)
    ]
    for child in children:
        child.start()
    alone = [new_run(tmp_path / "alone", spec_of(name, 1), f"job-{n}") for n, name in enumerate(ALONE_IN_ITS_JOB)]
    both = {name: new_run(tmp_path / "alone", pair_of(name, 1), name) for name in PAIRS}
    for run in [*both.values(), *alone]:
        run_in_turns(run)
    for child in children:
        child.join(90)
        assert child.exitcode == 0
    ended = [
        (name, run, f"job-{number}", 0) for number, (name, run) in enumerate(zip(ALONE_IN_ITS_JOB, alone, strict=True))
    ]
    pairs = [(name, run, name, replica) for name, run in both.items() for replica in range(2)]
    for name, one, job_id, replica in [*ended, *pairs]:
        two = final_weights(RunDir(tmp_path, job_id), replica)
        for key, weights in final_weights(one, replica).items():
            torch.testing.assert_close(two[key], weights, rtol=0, atol=1e-6, msg=f"{name}: {key}")
