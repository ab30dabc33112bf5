"""What Ray Train's errors mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from cluster.replica_run import ReplicaRun
from cluster.trainer import is_death, sentence_of
from codistill.run_dir import write_json
from tests.support import new_run, small_spec

RAISED = WorkerGroupError(
    "…", {0: UserExceptionWithTraceback(ValueError("loss is\n  nan"), "Traceback (most recent …")}
)
DIED = WorkerGroupError("…", {0: WorkerHealthCheckFailedError("…", ActorDiedError())})


@pytest.mark.parametrize(
    ("gpus", "estimate", "bundle"),
    [
        (0.0, None, {"CPU": 0.5}),
        (0.0, {"node_bytes_per_rank": None}, {"CPU": 0.5}),
        (0.0, {"node_bytes_per_rank": 600_000_000}, {"CPU": 0.5, "memory": 6e8}),
        (1.0, {"node_bytes_per_rank": 600_000_000}, {"CPU": 0.5, "GPU": 1.0, "memory": 6e8}),
    ],
)
def test_ray_keeps_free_what_the_estimate_said(
    gpus: float, estimate: dict[str, Any] | None, bundle: dict[str, float], tmp_path: Path
) -> None:
    run = new_run(tmp_path, small_spec(replicas={"cpus": 0.5, "gpus": gpus}))
    if estimate is not None:
        write_json(run.estimate, estimate)
    replica = ReplicaRun(run, 1, run.read_spec(), 0, "replica", "namespace", None)
    assert replica._train_run.bundle == bundle


def test_a_long_error_is_cut() -> None:
    assert sentence_of(ControllerError(RuntimeError("x" * 1000))).endswith("RuntimeError: " + "x" * 1000)
    told = sentence_of(ControllerError(RuntimeError("x" * 10**6)))
    assert 1000 < len(told) < 1200
    assert told.endswith("x ... (the whole of it is in the replica's log)")


@pytest.mark.parametrize(
    ("error", "death", "says"),
    [
        (RAISED, False, "ValueError: loss is nan"),
        (DIED, True, "its worker process died"),
        (ActorDiedError(), True, "its controller process died"),
        (ControllerError(RuntimeError("\x1b[36mno room\x1b[39m")), True, "RuntimeError: no room"),
    ],
    ids=["raised", "died", "controller died", "controller error"],
)
def test_failure_is_one_sentence_without_traceback(error: Exception, death: bool, says: str) -> None:
    assert is_death(error) is death
    told = sentence_of(error)
    assert says in told
    assert "Traceback" not in told
    assert "\n" not in told
