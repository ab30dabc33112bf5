"""What Ray Train's errors mean."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from cluster.trainer import is_death, sentence_of

RAISED = WorkerGroupError(
    "…", {0: UserExceptionWithTraceback(ValueError("loss is\n  nan"), "Traceback (most recent …")}
)
DIED = WorkerGroupError("…", {0: WorkerHealthCheckFailedError("…", ActorDiedError())})


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
