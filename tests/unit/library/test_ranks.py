"""Replicas of several ranks: real processes, real gloo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from codistill import records
from codistill.describe import describe
from codistill.exchange.agreement import Said, agree, agree_in_lockstep, held_by_all, pack, unpack
from codistill.exchange.clock import PublishRule
from codistill.exchange.mailbox import Mailbox
from codistill.exchange.snapshot import Arrays, Header, SnapshotId
from codistill.exchange.terms import Counters, MailboxSettings
from codistill.exchange.transport import FilesTransport
from codistill.exchange.weights import OfWeights
from codistill.price import estimate
from codistill.ranks import ALONE, join_group
from codistill.records import LEDGER, Recorder
from codistill.run_dir import RunDir, read_json
from tests.processes import fork_server
from tests.support import final_weights, fingerprint, merge, new_run, run_in_turns, small_spec

PLAIN = {
    "recipe": {"batch_norm": False},
    "training": {"steps": 12, "batch_size": 16},
    "replicas": {"count": 2, "cpus": 0.5},
    "limits": {"max_failures": 3},
}


def start(storage: Path, name: str, **change: Any) -> tuple[RunDir, subprocess.Popen[str]]:
    """A job on this machine, as a command."""
    storage.mkdir(exist_ok=True)
    path = storage / f"{name}.json"
    path.write_text(json.dumps(small_spec(**merge(PLAIN, change)).model_dump(mode="json")))
    command = [sys.executable, "-P", "-m", "codistill.local", str(path), "--storage", str(storage), "--job", name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return RunDir(storage, name), process


def ended(run: RunDir, process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    return read_json(run.result(1)) or {}


@pytest.mark.slow
def test_two_ranks_equal_one_process_on_the_whole_batch(tmp_path: Path) -> None:
    several, process = start(tmp_path, "several", replicas={"ranks": 2})
    runs = {1: new_run(tmp_path, small_spec(**PLAIN), "one"), 2: several}
    turns = run_in_turns(runs[1])
    results = {1: {"replicas": {f"replica-{n}": entry for n, entry in turns.items()}}, 2: ended(several, process)}
    for index in range(2):
        one, two = (final_weights(runs[ranks], index) for ranks in (1, 2))
        for name, weights in one.items():
            torch.testing.assert_close(two[name], weights, rtol=0, atol=1e-6)
        metrics = [results[ranks]["replicas"][f"replica-{index}"]["metrics"] for ranks in (1, 2)]
        assert metrics[1] == pytest.approx(metrics[0], abs=1e-5)
        losses = [records.values(records.read(runs[r], f"replica-{index}", "metrics"), "train/loss") for r in (1, 2)]
        assert losses[0][0] == losses[1][0] == list(range(1, 13))
        assert losses[1][1] == pytest.approx(losses[0][1], abs=1e-5)
        assert records.read(runs[2], f"replica-{index}", "ledger").num_rows == 9, "one row a step, not one a rank"
        entries = [results[ranks]["replicas"][f"replica-{index}"] for ranks in (1, 2)]
        sent, received = ([entry[f"bytes_{which}"] for entry in entries] for which in ("sent", "received"))
        gradients = sum(weights.nbytes for weights in one.values())
        assert sent[1] - sent[0] == 12 * 2 * gradients, "each of both ranks sends the gradients once a step"
        assert received[1] - 2 * received[0] == 12 * 2 * gradients, "and each fetches all that its replica hears"
    told = estimate(several.read_spec(), describe(several.read_spec()), [])["bytes_received"]
    assert told == sum(entry["bytes_received"] for entry in results[2]["replicas"].values())


WHOLE: dict[str, Any] = {
    "training": {
        "steps": 40, "accumulate": 2, "ema_decay": 0.9, "checkpoint_interval_steps": 10, "clip_norm": 1.0,
        "loader": {"workers": 1}, "optimizer": {"kind": "adamw"}, "schedule": {"kind": "cosine", "warmup_steps": 5},
    },
    "replicas": {"ranks": 2},
    "recipe": {"batch_norm": True},
}  # fmt: skip


@pytest.mark.slow
def test_a_rank_is_killed_and_all_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    """Loader workers (the calm run has none), accumulation, moving average, BatchNorm and two ranks, in lockstep: bit
    for bit."""
    calm, process = start(tmp_path, "calm", **merge(WHOLE, {"training": {"loader": {"workers": 0}}}))
    ended(calm, process)
    run, process = start(tmp_path, "killed", **WHOLE)
    wait_for_step(run, "replica-0", 13)
    os.kill(pid_of_rank(run, replica=0, rank=1), signal.SIGKILL)
    result = ended(run, process)
    assert result["outcome"] == "succeeded"
    assert result["replicas"]["replica-0"]["incarnations"] == 2
    assert result["replicas"]["replica-1"]["incarnations"] == 1
    for index in range(2):
        assert fingerprint(final_weights(run, index)) == fingerprint(final_weights(calm, index))


def wait_for_step(run: RunDir, replica: str, step: int) -> None:
    give_up = time.monotonic() + 60
    while (run.read_heartbeats(1) if run.root.exists() else {}).get(replica, {"step": 0})["step"] < step:
        assert time.monotonic() < give_up
        time.sleep(0.01)


def pid_of_rank(run: RunDir, *, replica: int, rank: int) -> int:
    """By the file that takes what it prints; the workers of its loader have the same, but lead no session."""
    output = run.logs(1, f"replica-{replica}") / f"0000-rank-{rank}.stderr"
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*/fd/2"):
        with suppress(OSError):
            pid = int(entry.parent.parent.name)
            if entry.readlink() == output and os.getsid(pid) == pid:
                found.append(pid)
    assert len(found) == 1, found
    return found[0]


# ---------------------------------------------------------------- all ranks change teachers in the same step

RULE = PublishRule(burn_in_steps=0, interval_steps=1)


class SlowTransport(FilesTransport):
    """Fetches take a while."""

    def fetch(self, header: Header) -> Arrays:
        time.sleep(0.25)
        return super().fetch(header)


def mailbox(
    run: RunDir, replica: int, transport: FilesTransport, ranks: Any, stop: Any = lambda: False
) -> Mailbox[nn.Module]:
    settings = MailboxSettings(SnapshotId(replica, 1, 0, 0), (1 - replica,), RULE, "async", threaded=True)
    ledger = Recorder(None, LEDGER, fence=1, incarnation=0)
    return Mailbox(transport, settings, ledger, OfWeights(nn.BatchNorm1d(2)), Counters(), ranks=ranks, should_stop=stop)


def listen(run: RunDir, rank: int, rendezvous: str, out: Path) -> None:
    """One rank of replica 0: shows what it has, then notes which version it hears in each of 150 steps of 20 ms."""
    ranks = join_group(rendezvous, rank, 2, on_gpu=False)
    told = ranks.gather_bytes(np.arange(3 * rank, dtype=np.uint8))
    assert [bytes_of.tolist() for bytes_of in told] == [[], [0, 1, 2]], "of any length"
    kind = SlowTransport if rank == 1 else FilesTransport
    box = mailbox(run, 0, kind(run, 0, 2, keep=4), ranks)
    shown = nn.BatchNorm1d(2)
    shown.running_mean = torch.tensor([float(rank), 10.0])
    box.publish(0, shown)
    heard: list[int | None] = []
    for step in range(150):
        time.sleep(0.02)
        held = box.read(step)
        heard.append(held[0].header.id.version if held else None)
    box.close()
    out.write_text(json.dumps(heard))


@pytest.mark.slow
def test_all_ranks_change_to_the_same_snapshot_in_the_same_step(tmp_path: Path) -> None:
    run = new_run(tmp_path, small_spec())
    context = fork_server()
    outs = [tmp_path / f"heard-{rank}" for rank in range(2)]
    rendezvous = f"file://{tmp_path / 'rendezvous'}"
    listeners = [context.Process(target=listen, args=(run, rank, rendezvous, outs[rank])) for rank in range(2)]
    for listener in listeners:
        listener.start()
    publisher = mailbox(run, 1, FilesTransport(run, 1, 2, keep=4), ALONE)
    version = 0
    while any(listener.is_alive() for listener in listeners):
        publisher.publish(version, nn.BatchNorm1d(2))
        version += 1
        time.sleep(0.15)
    publisher.close()
    shown = load_file(run.exchange("replica-0") / "0001-0000-000000000000.safetensors")
    assert shown["running_mean"].tolist() == [0.5, 10.0], "the ranks' own statistics leave as their mean"
    heard = [json.loads(out.read_text()) for out in outs]
    assert heard[0] == heard[1]
    versions = [v for v in heard[0] if v is not None]
    assert len(versions) > 75
    assert versions == sorted(versions)
    assert len(set(versions)) >= 4, "a rank that is slow to fetch must not keep the others on one teacher for ever"


def test_what_all_ranks_hold() -> None:
    a, b, c = (SnapshotId(1, 1, 0, version) for version in (5, 10, 15))
    restarted = SnapshotId(1, 1, 1, 8)
    assert held_by_all([[a, b], [a, c]]) == a
    assert held_by_all([[a, b, c], [c, b]]) == c
    assert held_by_all([[a, b, restarted], [b, restarted]]) == restarted, "a restart counts as newer"
    assert held_by_all([[a], [b]]) is None
    assert held_by_all([[a], []]) is None


def test_what_ranks_tell_each_other_arrives_and_decides() -> None:
    a, b = SnapshotId(1, 2, 0, 40), SnapshotId(1, 2, 1, 20)
    mine = [Said((a, b), 50), Said((), None)]
    assert unpack([1, 3], pack(True, mine)) == (True, mine)
    assert len(pack(False, mine)) == len(pack(False, [Said((), None)] * 2)), "the same number from every rank"
    assert agree([Said((a, b), 50), Said((a,), 60)]).chosen == a
    assert agree([Said((a, b), 50), Said((a,), 60)]).peer_step == 60
    assert agree_in_lockstep([Said((a,), None), Said((b,), None)], own=b).chosen == b
    assert agree_in_lockstep([Said((a,), None), Said((), None)], own=a).chosen is None
