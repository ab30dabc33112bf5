"""Methods on Ray: each ends bit for bit as in one process, as several ranks too, and killed in its last phase."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from codistill import records
from codistill.replay import replay
from codistill.run_dir import RunDir
from codistill.spec import JobSpec, Method
from tests.datasets import synthetic_datasets
from tests.ray.many_jobs import changed, on_ray, small_examples
from tests.ray.running import beat, beside, create, spec_of, until
from tests.support import final_weights, fingerprint, new_run, run_in_turns

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

MLP = {"kind": "images", "model": {"kind": "mlp", "width": 8, "layers": 2}}
SHIFTED = {**MLP, "shift_pixels": 2}
LIVE: dict[str, dict[str, Any]] = {
    "afd": {},
    "be-your-own-teacher": {},
    "deep-mutual-learning": {},
    "kdcl": {"recipe": SHIFTED, "method": {"others": [SHIFTED], "target": {"kind": "min_logit"}}},
    "okddip": {},
}
"""Examples of networks in one replica, and how they are changed so that a batch can be cut for ranks; each is shown a
sample in a view of its own by `kdcl`."""


def jobs_of_every_method() -> dict[str, JobSpec]:
    """Every example; the methods that have none; and what examples leave out."""
    examples = small_examples()
    pair = examples["codistillation-min-logit"]
    specs = {name: changed(example) for name, example in examples.items()}
    for kind in ("label_smoothing", "local_sgd", "diloco", "solo"):
        specs[kind.replace("_", "-")] = changed(pair, method={"kind": kind})
    specs["cached"] = changed(examples["knowledge-distillation"], method={"cache_predictions": True})
    specs["predictions"] = changed(
        pair,
        recipe={"kind": "text", "context": 32, "width": 8, "layers": 1, "heads": 2, "train_size": 20},
        method={"target": {"kind": "mean"}},
        exchange={
            "currency": {"kind": "predictions"},
            "transport": {"kind": "object_store"},
            "keep_snapshots": True,
        },
    )
    return specs


def cohorts(ranks: int) -> dict[str, JobSpec]:
    """On so many ranks, and without BatchNorm, which would normalise over a rank's share of the batch."""
    examples, base = small_examples(), {"recipe": MLP, "replicas": {"ranks": ranks}}
    return {name: changed(examples[name], **{**base, **change}) for name, change in LIVE.items()}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_method_ends_bit_for_bit_as_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And two ranks of a cohort as one process, but for the order of sums."""
    synthetic_datasets(tmp_path / "data")
    monkeypatch.setenv("CODISTILL_DATA", str(tmp_path / "data"))
    specs = jobs_of_every_method() | {f"{name}-1": spec for name, spec in cohorts(1).items()}
    kinds = {choice.model_fields["kind"].default for choice in get_args(get_args(Method)[0])}
    assert {spec.method.kind for spec in specs.values()} == kinds
    one = {name: new_run(tmp_path, spec, name) for name, spec in specs.items()}
    two = {name: new_run(tmp_path, spec, f"{name}-2") for name, spec in cohorts(2).items()}
    with on_ray([*one.values(), *two.values()]):
        calm = {name: in_turns(tmp_path / "calm", spec, name) for name, spec in specs.items()}
    for name, spec in specs.items():
        for index in range(spec.replicas.count):
            there, here = (fingerprint(final_weights(run, index)) for run in (one[name], calm[name]))
            assert there == here, f"{name}, replica {index}"
    for name, run in two.items():
        assert beat(run, "replica-0")["bytes_sent"] > 0, "gradients, to the other rank"
        there, here = (final_weights(each, 0) for each in (run, calm[f"{name}-1"]))
        torch.testing.assert_close(there, here, rtol=0, atol=1e-6, msg=lambda said, of=name: f"{of}: {said}")
    said_and_heard(one["predictions"])


def in_turns(storage: Path, spec: JobSpec, name: str) -> RunDir:
    """The same without Ray; what the object store is there, is memory here."""
    run = new_run(storage, spec, name)
    run_in_turns(run)
    return run


def said_and_heard(run: RunDir) -> None:
    """After burn-in each window was found in what the other had said; and all is told again."""
    spec = run.read_spec()
    for index in range(spec.replicas.count):
        metrics = records.read(run, f"replica-{index}", "metrics")
        found, missed = (records.values(metrics, f"predictions/{name}")[1][-1] for name in ("found", "missed"))
        assert (found, missed) == (spec.training.batch_size * (spec.training.steps - spec.burn_in_steps), 0)
        assert replay(run, index).first_difference is None


STEPS, CHECKPOINT_STEPS = 200, 20
"""Of each phase: a second or more, so that there is time to kill once the first checkpoint is there."""
KILLED: dict[str, dict[str, Any]] = {
    "knowledge_distillation": {"teacher": {"kind": "trained_first", "steps": STEPS}},
    "deep_mutual_learning": {"order": "sequential"},
    "afd": {"adversarial_learning_rate": 0.001},
    "be_your_own_teacher": {},
}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_in_each_phase_they_end_bit_for_bit_as_in_one_process(tmp_path: Path) -> None:
    """Methods of two phases, of several networks, updates and exits, beside each other, since most of the time goes
    into starting workers."""
    replicas = {"count": 1, "cpus": 0.5}
    specs = {kind: spec_of(STEPS, replicas=replicas, method={"kind": kind, **KILLED[kind]}) for kind in KILLED}
    runs = {kind: create(tmp_path, spec, kind.replace("_", "-")) for kind, spec in specs.items()}
    with ExitStack() as stack:
        ends = {kind: stack.enter_context(beside(run)) for kind, run in runs.items()}
        to_kill = [(kind, n) for kind, spec in specs.items() for n in range(spec.total_steps // STEPS)]
        while to_kill:
            until(lambda: kill_one(runs, to_kill), limit_s=300)
        results = {kind: ended() for kind, ended in ends.items()}
    for kind, spec in specs.items():
        entry = results[kind]["replicas"]["replica-0"]
        assert entry["outcome"] == "succeeded", entry
        assert (entry["incarnations"], entry["steps"]) == (1 + spec.total_steps // STEPS, spec.total_steps)
        calm = in_turns(tmp_path / "calm", spec, kind.replace("_", "-"))
        assert fingerprint(final_weights(runs[kind], 0)) == fingerprint(final_weights(calm, 0)), kind


def kill_one(runs: dict[str, RunDir], to_kill: list[tuple[str, int]]) -> bool:
    """Kill a worker that has saved something of a phase, the incarnation of the phase's number, and cross it off;
    whether there was one."""
    for entry in to_kill:
        kind, phase = entry
        now, saved = beat(runs[kind], "replica-0"), newest_checkpoint(runs[kind]) - phase * STEPS
        if now["incarnation"] == phase and saved >= CHECKPOINT_STEPS:
            assert saved < STEPS - CHECKPOINT_STEPS, "too fast to be killed in time"
            os.kill(now["pid"], signal.SIGKILL)
            to_kill.remove(entry)
            return True
    return False


def newest_checkpoint(run: RunDir) -> int:
    """Steps that are saved."""
    manifests = run.checkpoints("replica-0").glob("*/manifest.json")
    return max((int(manifest.parent.name.partition("-")[2]) for manifest in manifests), default=0)
