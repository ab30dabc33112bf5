"""Batches: the same whoever makes them, and random streams that do not know their neighbours."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from codistill.batch import Batch
from codistill.data.loader import BY_VALUE_BYTES, TrainingBatches, read_ahead, training_batches
from codistill.data.split import TensorSplit, draw_ids, in_order
from codistill.phase import Replica
from codistill.randomness import Name, hashes, stream_seed, uniforms
from codistill.recipes import digits
from codistill.spec import Disjoint, Loader, SameSet
from tests.support import new_run, run_in_turns, small_spec

IDS = torch.arange(100, 150)


def add_noise(view: Tensor, ids: Tensor, stream: tuple[Name, ...]) -> Tensor:
    return view + uniforms(ids, 3, *stream)


def split() -> TensorSplit:
    return TensorSplit(IDS, IDS % 7, {"x": torch.zeros(50, 3)}, augment=add_noise)


def batches(rank: int = 0, ranks: int = 1) -> TrainingBatches:
    return training_batches(split(), SameSet(), Replica(1, 2, 5, rank, ranks), 8)


def same(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(a, b) for a, b in ((one.ids, other.ids), (one.y, other.y), (one.views["x"], other.views["x"]))
    )


def test_split_mix_gives_the_published_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first outputs of SplitMix64 seeded with 1234567, as in the reference implementation's test vectors.
    monkeypatch.setattr("codistill.randomness.stream_seed", lambda *names: 1234567)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert hashes(torch.arange(4), "any").tolist() == expected


def test_uniforms_depend_on_the_id_alone_and_are_uniform() -> None:
    ids = torch.arange(20_000)
    numbers = uniforms(ids, 2, "augment", 5, 1)
    assert torch.equal(numbers[7:9], uniforms(ids[7:9], 2, "augment", 5, 1))
    assert not torch.equal(numbers, uniforms(ids, 2, "augment", 5, 2))
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    counts = np.histogram(numbers.flatten().numpy(), bins=10, range=(0, 1))[0]
    assert ((counts - 4000) ** 2 / 4000).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001
    assert abs(float(torch.corrcoef(numbers.T)[0, 1])) < 0.03


def test_a_split_reads_by_id_in_the_order_asked_for() -> None:
    batch = split().read(torch.tensor([140, 101, 140]))
    assert batch.y.tolist() == [0, 3, 0]
    assert batch.views["x"].abs().sum() == 0  # no stream, no augmentation
    assert torch.cat([batch.ids for batch in in_order(split(), 7)]).tolist() == IDS.tolist()
    with pytest.raises(ValueError, match="must ascend"):
        TensorSplit(IDS.flip(0), IDS, {})
    with pytest.raises(ValueError, match="same length"):
        TensorSplit(IDS, IDS[:3], {})


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_batch_of_one_process(ranks: int) -> None:
    for step in (0, 3, 11):
        whole = batches()(step)
        parts = [batches(rank, ranks)(step) for rank in range(ranks)]
        assert torch.equal(torch.cat([part.ids for part in parts]), whole.ids)
        assert torch.equal(torch.cat([part.views["x"] for part in parts]), whole.views["x"])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_any_number_of_workers_gives_the_same_batches(workers: int) -> None:
    expected = [batches()(step) for step in range(3, 9)]
    made = list(read_ahead(batches(), range(3, 9), Loader(workers=workers)))
    assert len(made) == 6
    assert all(same(one, other) for one, other in zip(made, expected, strict=True))


def mixed_batch(step: int) -> Batch:
    """Large (above what is sent by value) in odd steps; types that numpy lacks, a scalar, an empty view."""
    drawn = torch.arange(step, step + 6, dtype=torch.float32).reshape(2, 3)
    views = {
        "x": drawn.repeat(1, 60_000) if step % 2 else drawn,
        "half": drawn.to(torch.bfloat16),
        "turned": drawn.t(),
        "known": drawn > 3,
        "double": drawn.to(torch.float64),
        "scalar": torch.tensor(step),
        "none": torch.zeros(2, 0, 4),
    }
    return Batch(torch.tensor([step, 7]), torch.tensor([[1, 2], [3, 4]]), views)


def test_a_batch_leaves_a_worker_as_it_was_made() -> None:
    assert mixed_batch(0).nbytes < BY_VALUE_BYTES < mixed_batch(1).nbytes
    for step, arrived in enumerate(read_ahead(mixed_batch, range(4), Loader(workers=1))):
        made = mixed_batch(step)
        assert list(arrived.views) == list(made.views)
        assert same(made, arrived)
        for name, view in made.views.items():
            assert arrived.views[name].dtype == view.dtype
            assert torch.equal(arrived.views[name], view)


def test_a_draw_is_the_same_for_ever_and_nested() -> None:
    small, large = draw_ids(IDS, 5, "train"), draw_ids(IDS, 20, "train")
    assert small.tolist() == sorted(small.tolist())
    assert set(small.tolist()) < set(large.tolist())
    expected = sorted(IDS.tolist(), key=lambda i: _signed(int(hashes(torch.tensor([i]), "draw", "train")[0])))[:5]
    assert small.tolist() == sorted(expected)
    assert draw_ids(IDS, None, "train") is IDS
    with pytest.raises(ValueError, match="51 samples of 'train' are asked for, the data set has 50"):
        draw_ids(IDS, 51, "train")
    assert stream_seed("draw", "train") != stream_seed("draw", "test")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def train_for_ever(pids: Any) -> None:
    """A training process with two loader workers."""
    made = read_ahead(batches(), range(10**6), Loader(workers=2))
    next(made)
    pids.send([child.pid for child in multiprocessing.active_children()])
    time.sleep(600)


def test_loader_workers_die_with_the_process_that_trains() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    trainer = multiprocessing.get_context("spawn").Process(target=train_for_ever, args=(sender,))
    trainer.start()
    assert receiver.poll(60)
    workers = receiver.recv()
    assert len(workers) == 2
    os.kill(trainer.pid or 0, signal.SIGKILL)
    trainer.join()
    give_up = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < give_up, "orphans"
        time.sleep(0.05)


def test_a_phase_of_another_name_shows_the_same_samples_in_another_order_and_augmented_otherwise() -> None:
    def noise(view: Tensor, ids: Tensor, stream: tuple[Name, ...]) -> Tensor:
        return view + uniforms(ids, 1, *stream)

    split = TensorSplit(torch.arange(12), torch.zeros(12, dtype=torch.int64), {"x": torch.zeros(12, 1)}, noise)
    phases = [training_batches(split, Disjoint(), Replica(0, 2, 5), 6, *names)(0) for names in ((), ("teacher",))]
    first, second = (batch.ids for batch in phases)
    assert set(first.tolist()) == set(second.tolist())
    assert first.tolist() != second.tolist()
    shown = [dict(zip(batch.ids.tolist(), batch.views["x"].flatten().tolist(), strict=True)) for batch in phases]
    assert all(shown[0][sample] != shown[1][sample] for sample in shown[0])


@pytest.mark.parametrize("size", ["VALIDATION_SIZE", "TEST_SIZE"])
def test_a_split_without_samples_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    monkeypatch.setattr(digits, size, 0)
    run = new_run(tmp_path, small_spec(method={"kind": "solo"}))
    name = size.partition("_")[0].lower()
    with pytest.raises(ValueError, match=f"the data have no samples of split '{name}'; to train and to evaluate takes"):
        run_in_turns(run)
    assert not run.checkpoints("replica-0").exists()
