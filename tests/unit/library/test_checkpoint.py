"""Checkpoints: all or nothing, checked on load, and read only by those who may."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from codistill import checkpoint
from codistill.checkpoint import Checkpoint, load_newest, pack_optimizer, readable_in, save, unpack_optimizer
from codistill.run_dir import StorageError
from tests.support import new_run, small_spec


def at_step(step: int, fence: int = 1) -> Checkpoint:
    weight = torch.arange(6.0).reshape(2, 3) + step
    return Checkpoint(fence, step, {"learner": {"a": weight, "tied": weight}}, {"step": step, "lr": 0.1})


def everything(name: str) -> bool:
    return True


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save(tmp_path, at_step(5))
    loaded = load_newest(tmp_path, everything)
    assert loaded is not None
    assert (loaded.fence, loaded.step, loaded.values) == (1, 5, {"step": 5, "lr": 0.1})
    assert_close(loaded.tensors["learner"]["tied"], torch.arange(6.0).reshape(2, 3) + 5)


def test_the_newest_is_of_the_highest_fence_then_step_and_three_are_kept(tmp_path: Path) -> None:
    for fence, step in ((1, 10), (1, 20), (2, 5), (2, 15)):
        save(tmp_path, at_step(step, fence))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0001-000000000020",
        "0002-000000000005",
        "0002-000000000015",
    ]
    loaded = load_newest(tmp_path, everything)
    assert loaded is not None
    assert (loaded.fence, loaded.step) == (2, 15)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_noticed_and_the_one_before_is_taken(tmp_path: Path, data: st.DataObject) -> None:
    for old in tmp_path.iterdir():
        os.system(f"rm -r '{old}'")
    save(tmp_path, at_step(1))
    damaged = save(tmp_path, at_step(2))
    victim = data.draw(st.sampled_from(sorted(path.name for path in damaged.iterdir())))
    content = bytearray((damaged / victim).read_bytes())
    kind = data.draw(st.sampled_from(["flip", "truncate", "delete"]))
    if kind == "flip":
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] ^= 1 << data.draw(st.integers(0, 7))
        (damaged / victim).write_bytes(content)
    elif kind == "truncate":
        (damaged / victim).write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    else:
        (damaged / victim).unlink()
    loaded = load_newest(tmp_path, everything)
    assert loaded is not None
    if victim == "manifest.json" and kind == "flip" and loaded.step == 2:
        return  # a flip in the manifest's white space or in a key nobody reads changes nothing
    assert loaded.step == 1


def test_a_kill_at_any_moment_leaves_the_one_before(tmp_path: Path) -> None:
    """A child that saves without pause is killed with -9 many times; what can be loaded is always whole."""
    program = """
        import sys
        from pathlib import Path
        import torch
        from codistill.checkpoint import Checkpoint, save
        step = int(sys.argv[2])
        while True:
            step += 1
            tensors = {"learner": {"a": torch.full((300_000,), float(step))}}
            save(Path(sys.argv[1]), Checkpoint(1, step, tensors, {"step": step}))
            print(step, flush=True)
    """
    step = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), str(tmp_path), str(step)],
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdout is not None
            said = [int(child.stdout.readline()) for _ in range(4)]
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
        loaded = load_newest(tmp_path, everything)
        assert loaded is not None
        assert loaded.step >= said[-1]
        assert (loaded.tensors["learner"]["a"] == loaded.step).all()
        step = loaded.step


def test_a_full_disk_is_one_sentence_and_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, at_step(1))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(StorageError, match=r"cannot write checkpoint .*0002: .*No space left on device"):
        save(tmp_path, at_step(2))
    assert [path.name for path in tmp_path.iterdir()] == ["0001-000000000001"]


def test_a_new_attempt_never_reads_what_an_old_one_writes_late(tmp_path: Path) -> None:
    run = new_run(tmp_path, small_spec())
    directory = run.checkpoints("replica-0")
    save(directory, at_step(10, fence=1))
    run.start_attempt(2, 0.0)
    save(directory, at_step(20, fence=1))  # by a driver thought dead
    loaded = load_newest(directory, readable_in(run, 2, "replica-0"))
    assert loaded is not None
    assert loaded.step == 10
    save(directory, at_step(15, fence=2))
    loaded = load_newest(directory, readable_in(run, 2, "replica-0"))
    assert loaded is not None
    assert (loaded.fence, loaded.step) == (2, 15)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_optimizer_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    def begin() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        if kind == "sgd":
            return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()

    model, optimizer = begin()
    steps(model, optimizer)
    tensors, values = pack_optimizer(optimizer)
    save(tmp_path, Checkpoint(1, 3, {"learner": model.state_dict(), "optimizer": tensors}, values))
    steps(model, optimizer)

    resumed, fresh = begin()
    loaded = load_newest(tmp_path, everything)
    assert loaded is not None
    resumed.load_state_dict(dict(loaded.tensors["learner"]))
    unpack_optimizer(fresh, loaded.tensors["optimizer"], loaded.values)
    steps(resumed, fresh)
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
