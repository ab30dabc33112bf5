"""Precision, accumulation, averages, decay, compilation: against what they mean, worked out beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from codistill.loop import train_step
from codistill.methods.common import groups
from codistill.moving_average import MovingAverage
from codistill.numerics import Numerics, device_of, set_up_process, wrap
from codistill.peers import PeerTeachers
from codistill.phase import Artifacts, Learner, Loss, Phase, Step, Update
from codistill.ranks import ALONE
from codistill.spec import Training
from codistill.work import PhaseInProgress
from tests.support import final_weights, new_run, run_in_turns, small_spec
from tests.unit.library.test_loop import around, batch, group, phase, show_sum, two_parts

PLAIN: dict[str, Any] = {"recipe": {"batch_norm": False}}


def trained(storage: Path, **change: Any) -> tuple[dict[str, torch.Tensor], dict[int, dict[str, Any]]]:
    run = new_run(storage, small_spec(**{**PLAIN, **change}))
    results = run_in_turns(run)
    return final_weights(run, 0), results


def test_micro_batches_add_up_to_the_batch(tmp_path: Path) -> None:
    whole, _ = trained(tmp_path / "whole")
    cut, _ = trained(tmp_path / "cut", training={"accumulate": 4})
    for name, weights in whole.items():
        torch.testing.assert_close(cut[name], weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_products_run_in_half_precision_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, dtype: torch.dtype
) -> None:
    seen: dict[str, set[torch.dtype]] = {"student": set(), "teacher": set(), "softmax": set()}
    outputs, linear, softmax = PeerTeachers.outputs, nn.Linear.forward, torch.nn.functional.log_softmax

    def spied_outputs(self: PeerTeachers, batch: Any) -> Any:
        said = outputs(self, batch)
        seen["teacher"].update(one["logits"].dtype for one in said)
        return said

    def spied_linear(self: nn.Linear, values: torch.Tensor) -> torch.Tensor:
        out = linear(self, values)
        if self.training:
            seen["student"].add(out.dtype)
        return out

    def spied_softmax(values: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen["softmax"].add(values.dtype)
        return softmax(values, *args, **kwargs)

    monkeypatch.setattr(PeerTeachers, "outputs", spied_outputs)
    monkeypatch.setattr(nn.Linear, "forward", spied_linear)
    monkeypatch.setattr(torch.nn.functional, "log_softmax", spied_softmax)
    exact, _ = trained(tmp_path / "fp32")
    assert seen == {"student": {torch.float32}, "teacher": {torch.float32}, "softmax": {torch.float32}}
    for kinds in seen.values():
        kinds.clear()
    half, results = trained(tmp_path / precision, training={"precision": precision})
    assert seen == {"student": {dtype}, "teacher": {dtype}, "softmax": {torch.float32}}
    for name, weights in exact.items():
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], weights, rtol=0, atol=0.02)
        assert not torch.equal(half[name], weights)
    assert all(entry["outcome"] == "succeeded" for entry in results.values())


def test_a_gradient_that_overflows_in_fp16_skips_the_step_and_lowers_the_scale() -> None:
    factor = torch.tensor(1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    what = phase(two_parts(), {"net": group("net.*")}, [Update(lambda s: _scaled(s, factor), ("net",))])
    work = PhaseInProgress.begin(what, what.learner(Artifacts()), scaler=scaler)
    parts = wrap(work.learner, ALONE, several_updates=False)
    before = work.learner["net"].weight.detach().clone()
    factor.fill_(float("inf"))
    stats = train_step(what, work, parts, batch(0), around())
    assert torch.equal(work.learner["net"].weight, before)
    assert float(stats["train/loss_scale"]) == 512.0
    factor.fill_(1.0)
    train_step(what, work, parts, batch(0), around())
    assert not torch.equal(work.learner["net"].weight, before)


def _scaled(step: Step, factor: torch.Tensor) -> Loss:
    return Loss(step.show("net")["logits"].sum() * factor)


def test_the_average_follows_the_weights() -> None:
    what = phase(two_parts(), {"net": group("net.*")}, [show_sum("net")])
    work = PhaseInProgress.begin(what, what.learner(Artifacts()), ema_decay=0.75)
    parts = wrap(work.learner, ALONE, several_updates=False)
    expected: torch.Tensor | None = None
    for step in range(4):
        train_step(what, work, parts, batch(step), around())
        assert work.average is not None
        work.average.update(work.learner)
        now = work.learner["net"].weight.detach().clone()
        expected = now if expected is None else 0.75 * expected + 0.25 * now
    assert expected is not None
    torch.testing.assert_close(work.served["net"].weight.detach(), expected)
    assert not torch.equal(work.served["net"].weight, work.learner["net"].weight)


class Waits(TorchDispatchMode):
    """Notes what on a GPU would wait for it: copies between devices, and numbers read out of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten._to_copy.default):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_the_average_is_torchs_bit_for_bit_goes_on_where_it_was_and_waits_for_nothing() -> None:
    learner = Learner({"net": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))})
    torchs = AveragedModel(learner, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    ours = MovingAverage(learner, 0.9)
    for step in range(5):
        with torch.no_grad():
            for tensor in learner.state_dict().values():
                tensor.copy_(torch.full_like(tensor, step) + torch.randn(tensor.shape))
        if step == 3:  # a checkpoint, of torch's too, is where both go on
            ours = MovingAverage(learner, 0.9)
            ours.load_state_dict(torchs.state_dict())
        torchs.update_parameters(learner)
        with Waits() as waits:
            ours.update(learner)
        assert waits.seen == []
        kept, expected = ours.state_dict(), torchs.state_dict()
        assert list(kept) == list(expected)
        assert all(torch.equal(kept[name], expected[name]) for name in expected)


def test_the_average_is_what_is_exported_and_not_what_is_trained(tmp_path: Path) -> None:
    plain, _ = trained(tmp_path / "plain")
    averaged, _ = trained(tmp_path / "averaged", training={"ema_decay": 0.9})
    assert any(not torch.equal(plain[name], averaged[name]) for name in plain)
    still, _ = trained(tmp_path / "still", training={"ema_decay": 1e-9})
    for name, weights in plain.items():  # an average that forgets at once: training is the same with one as without
        torch.testing.assert_close(still[name], weights, rtol=0, atol=1e-6)


def test_weight_decay_spares_vectors_and_follows_its_schedule() -> None:
    training = Training(
        steps=10,
        decay_vectors=False,
        weight_decay_schedule={"kind": "linear", "final_factor": 0.0},  # pyright: ignore[reportArgumentType]
        schedule={"kind": "constant"},  # pyright: ignore[reportArgumentType]
        optimizer={"kind": "adamw", "weight_decay": 0.2},  # pyright: ignore[reportArgumentType]
    )
    learner = Learner({"net": nn.Linear(3, 2)})
    what = Phase(
        name="train", steps=10, learner=lambda artifacts: learner, batches=lambda artifacts: batch, updates=[],
        groups=groups(training, {"net": ("net.*",)}),
    )  # fmt: skip
    work = PhaseInProgress.begin(what, learner)
    opened = work.groups["net"]
    for step, expected in ((0, 0.2), (5, 0.1)):
        for parameter in learner.parameters():
            parameter.grad = torch.zeros_like(parameter)
        weight, bias = learner["net"].weight.detach().clone(), learner["net"].bias.detach().clone()
        opened.step(step, work.scaler)
        torch.testing.assert_close(learner["net"].weight.detach(), weight * (1 - 1e-3 * expected))
        assert torch.equal(learner["net"].bias, bias)


@pytest.mark.slow
def test_a_compiled_teacher_stays_compiled_when_its_weights_are_swapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_in_place = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_in_place(self, backend="aot_eager"))
    graphs: list[int] = []
    run = new_run(tmp_path / "compiled", small_spec(**PLAIN, training={"compile": True}))
    counters.clear()
    run_in_turns(run, before_step=lambda replica, step: graphs.append(counters["stats"]["unique_graphs"]))
    # Steps 3, 4, 6, 8 and 10 change teachers; the first evaluation is after the last step.
    assert graphs[8] > 0
    assert len(set(graphs[2 * 5 :])) == 1, graphs
    plain, _ = trained(tmp_path / "plain")
    for name, weights in final_weights(run, 0).items():
        torch.testing.assert_close(weights, plain[name], rtol=0, atol=1e-6)


def test_where_a_replica_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of(small_spec(), 3) == torch.device("cpu")
    wants_gpu = small_spec(replicas={"gpus": 0.5})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"asks for a GPU, and torch finds none here; set training.device = 'cpu'"):
        device_of(wants_gpu, 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device_of(wants_gpu, index) for index in range(3)] == [torch.device("cuda", i) for i in (0, 1, 0)]
    assert device_of(small_spec(replicas={"gpus": 0.5}, training={"device": "cpu"}), 0) == torch.device("cpu")
    assert Numerics(torch.device("cpu"), "bf16").autocast().fast_dtype == torch.bfloat16


def test_determinism_is_asked_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    set_up_process(small_spec())
    assert asked == []
    set_up_process(small_spec(training={"deterministic": True}))
    assert asked == [True]
