"""Teachers on mapped memory: what they compute, and what can never happen to the memory they share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from codistill.batch import as_outputs
from codistill.exchange.mailbox import Mailbox
from codistill.exchange.mapped_file import map_safetensors, write_safetensors
from codistill.exchange.shelf import Held
from codistill.exchange.snapshot import BF16, Array, Arrays, SnapshotId, header_of, norm_of, schema_of
from codistill.exchange.weights import bytes_published, hold, published
from codistill.peers import PeerTeachers
from codistill.randomness import unseen
from codistill.recipes.digits import SmallCnn
from codistill.spec import TravelPrecision
from tests.support import fingerprint


def trained_cnn(seed: int, steps: int = 5) -> SmallCnn:
    """A CNN whose BatchNorm statistics are no longer those it began with."""
    torch.manual_seed(seed)
    model = SmallCnn(width=4, classes=10, batch_norm=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.rand(16, 1, 8, 8))["logits"].square().mean().backward()
        optimizer.step()
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(9))


@pytest.fixture
def mapped(tmp_path: Path) -> Arrays:
    """The snapshot of a trained CNN, mapped from a file."""
    path = tmp_path / "snapshot"
    write_safetensors(path, published(trained_cnn(1)))
    return map_safetensors(path)


def teacher_on(arrays: Arrays) -> SmallCnn:
    teacher = SmallCnn(width=4, classes=10, batch_norm=True)
    teacher.eval().requires_grad_(False)
    hold(teacher, arrays)
    return teacher


def test_a_teacher_answers_what_its_publisher_would(mapped: Arrays, images: Tensor) -> None:
    publisher = trained_cnn(1).eval()
    assert_close(teacher_on(mapped)(images)["logits"], publisher(images)["logits"], atol=1e-6, rtol=0)


def test_parameters_are_mapped_and_buffers_copied(mapped: Arrays) -> None:
    teacher = teacher_on(mapped)
    for name, parameter in teacher.named_parameters():
        assert parameter.data_ptr() == mapped[name].ctypes.data, name
        assert not parameter.requires_grad
    for name, buffer in teacher.named_buffers():
        assert buffer.data_ptr() != mapped[name].ctypes.data, name


def test_no_forward_or_backward_writes_to_the_shared_memory(mapped: Arrays, images: Tensor) -> None:
    before = {name: array.copy() for name, array in mapped.items()}
    teacher = teacher_on(mapped)
    teacher.train()  # by mistake: BatchNorm now writes its statistics, into the teacher's own copies
    x = images.clone().requires_grad_()
    teacher(x)["logits"].sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for name, array in mapped.items():
        np.testing.assert_array_equal(array, before[name])
        assert not array.flags.writeable, name


def test_a_write_dies_rather_than_reach_a_peer(tmp_path: Path) -> None:
    """The mapping is read-only in the page tables: a stray write ends its own process and changes nothing."""
    path = tmp_path / "snapshot"
    write_safetensors(path, {"w": np.ones(100_000, dtype=np.float32)})
    program = """
        import sys
        from pathlib import Path
        from torch import nn
        from codistill.exchange.mapped_file import map_safetensors
        from codistill.exchange.weights import hold
        module = nn.Module()
        module.w = nn.Parameter(__import__("torch").zeros(100_000), requires_grad=False)
        hold(module, map_safetensors(Path(sys.argv[1])))
        print("held", flush=True)
        module.w.add_(1)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "held\n", done.stderr
    assert done.returncode == -signal.SIGSEGV
    assert (map_safetensors(path)["w"] == 1).all()


def test_holding_warns_of_nothing(mapped: Arrays) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        teacher_on(mapped)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.ones(2), persistent=False)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.embed(ids))}


@dataclass
class Script:
    """A mailbox in which it stands written who is heard in which step."""

    steps: list[list[Held]]

    def read(self, step: int) -> list[Held]:
        return self.steps[step]


def linear(value: float) -> nn.Linear:
    model = nn.Linear(1, 2, bias=False)
    nn.init.constant_(model.weight, value)
    return model


@pytest.mark.parametrize(("precision", "halves"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_parameters_travel_in_half_the_bytes_and_buffers_as_they_are(
    precision: TravelPrecision, halves: torch.dtype, tmp_path: Path
) -> None:
    publisher = trained_cnn(1)
    arrays = published(publisher, precision)
    write_safetensors(tmp_path / "snapshot", arrays)
    teacher = teacher_on(map_safetensors(tmp_path / "snapshot"))
    parameters, buffers = list(publisher.parameters()), list(publisher.buffers())
    for mine, its in zip(parameters, teacher.parameters(), strict=True):
        assert its.dtype == torch.float32
        assert_close(its, mine.to(halves).float(), atol=0, rtol=0)
    for mine, its in zip(buffers, teacher.buffers(), strict=True):
        assert_close(its, mine, atol=0, rtol=0)
    expected = 2 * sum(p.numel() for p in parameters) + sum(b.numel() * b.element_size() for b in buffers)
    assert sum(array.nbytes for array in arrays.values()) == expected == bytes_published(publisher, precision)
    squares = sum(float(p.detach().to(halves).double().square().sum()) for p in parameters)
    squares += sum(float(b.double().square().sum()) for b in buffers if b.is_floating_point())
    assert norm_of(arrays) == pytest.approx(squares**0.5, rel=1e-6)
    assert schema_of(arrays) != schema_of(published(publisher))


def test_a_model_in_bf16_travels_as_it_is_and_is_mapped(tmp_path: Path, images: Tensor) -> None:
    publisher = trained_cnn(1).to(torch.bfloat16).eval()
    write_safetensors(tmp_path / "snapshot", published(publisher))
    arrays = map_safetensors(tmp_path / "snapshot")
    teacher = SmallCnn(width=4, classes=10, batch_norm=True).to(torch.bfloat16).eval().requires_grad_(False)
    hold(teacher, arrays)
    for name, parameter in teacher.named_parameters():
        assert parameter.data_ptr() == arrays[name + BF16].ctypes.data, name
    shown = images.to(torch.bfloat16)
    assert torch.equal(teacher(shown)["logits"], publisher(shown)["logits"])


def test_modules_of_peers_no_longer_heard_show_others() -> None:
    """Also of one who comes back with the snapshot he had: his module shows another by then."""

    def says(peer: int, *, is_new: bool) -> Held:
        arrays = published(linear(float(peer)))
        return Held(header_of(SnapshotId(peer, 1, 0, 0), arrays, 0.0), arrays, 0, 0, is_new)

    built: list[nn.Module] = []

    def build(peer: int) -> nn.Module:
        built.append(linear(0.0))
        return built[-1]

    one, two = says(1, is_new=True), says(2, is_new=True)
    script = Script([[one], [two], [says(1, is_new=False)], [], [one, two], [says(2, is_new=False)]])
    peers = PeerTeachers(cast(Mailbox, script), linear(0.0), build, lambda module, x: as_outputs(module(x)))
    heard: list[list[float]] = []
    modules: list[int] = []
    for step in range(len(script.steps)):
        peers.before_step(step)
        modules.append(len(built))
        heard.append([float(said["logits"][0, 0]) for said in peers.outputs(torch.ones(1, 1))])
    assert heard == [[1.0], [2.0], [1.0], [], [1.0, 2.0], [2.0]]
    assert modules == [1, 1, 1, 1, 2, 2], "as many as were ever heard at once"


def test_tied_weights_travel_once_and_stay_tied() -> None:
    torch.manual_seed(0)
    publisher, teacher = Tied(), Tied()
    arrays: dict[str, Array] = {name: array.copy() for name, array in published(publisher).items()}
    assert list(arrays) == ["embed.weight"]  # one name for both, and no buffer that is not part of the state
    hold(teacher.requires_grad_(False), arrays)
    assert teacher.head.weight is teacher.embed.weight
    ids = torch.arange(7)
    assert_close(teacher(ids)["logits"], publisher(ids)["logits"])


def test_a_teacher_outlives_its_publisher(tmp_path: Path, images: Tensor) -> None:
    """Killed with -9, its file removed: the teacher computes on."""
    path = tmp_path / "snapshot"
    program = """
        import sys, time
        from pathlib import Path
        from codistill.exchange.mapped_file import write_safetensors
        from codistill.exchange.weights import published
        from tests.unit.library.test_teachers import trained_cnn
        write_safetensors(Path(sys.argv[1]), published(trained_cnn(1)))
        print("published", flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(path)], stdout=subprocess.PIPE, text=True
    ) as publisher:
        assert publisher.stdout is not None
        assert publisher.stdout.readline() == "published\n"
        teacher = teacher_on(map_safetensors(path))
        os.kill(publisher.pid, signal.SIGKILL)
        publisher.wait()
    path.unlink()
    assert_close(teacher(images)["logits"], trained_cnn(1).eval()(images)["logits"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_a_forward_under_unseen_leaves_no_trace(mode: str, images: Tensor) -> None:
    model = nn.Sequential(trained_cnn(2).body, nn.Dropout(0.5)).train()
    before, drawn = fingerprint(model.state_dict()), torch.random.get_rng_state()
    with unseen(model, mode):  # pyright: ignore[reportArgumentType]
        first, second = model(images), model(images)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert fingerprint(model.state_dict()) == before
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(layer.training for layer in model.modules())
    assert model[0][1].track_running_stats


def test_unseen_by_batch_uses_the_statistics_of_the_batch(images: Tensor) -> None:
    norm = nn.BatchNorm2d(1)
    with unseen(norm, "batch"):
        shown = norm(images)
    assert_close(shown.mean().item(), 0.0, atol=1e-5, rtol=0)
    with unseen(norm):
        shown = norm(images)
    assert_close(shown, images / (1 + 1e-5) ** 0.5)


class Noisy(nn.Module):
    """Draws in evaluation, too, as stochastic layers of some models do."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


def test_unseen_gives_back_what_a_forward_drew(images: Tensor) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with unseen(Noisy()) as _:
        Noisy()(images)
    assert torch.equal(torch.rand(4), expected)
